package podresources

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/manifold-cni/manifold/checkpoint"
)

// decision is the answer that one look at the sources supports.
type decision struct {
	alloc *Allocation
	err   error
	again patience
}

// patience tells whether another look may change the answer.
type patience int

const (
	never  patience = iota // the answer is final
	once                   // look once more, unless this is a later look already
	longer                 // look again until [Options].Retry is over
)

// decide applies the package comment's first table.
func (v *view) decide() decision {
	switch {
	case v.liveErr == nil && v.agree(v.live):
		return decision{alloc: v.join(v.live)}
	case v.liveErr == nil && len(v.live) > 0:
		return v.decideLive()
	case len(v.own) > 0:
		return v.decideMemory()
	case v.liveErr == nil && (v.memErr == nil || errors.Is(v.memErr, errNoSource)):
		return decision{alloc: &Allocation{}}
	case v.liveErr == nil:
		return decision{alloc: note(&Allocation{}, "the checkpoint is unusable: %v", v.memErr), again: longer}
	}
	return v.decideSilence()
}

// decideSilence decides when the API has no answer and the checkpoint has no entry of
// the pod.
func (v *view) decideSilence() decision {
	alone := errors.Is(v.liveErr, errNoSource)
	if alone && v.memErr == nil && v.pod.UID != "" {
		return decision{alloc: &Allocation{}}
	}
	d := decision{err: fmt.Errorf("%w: API: %w; checkpoint: %w", ErrUnavailable, causeOf(v.liveErr), v.memoryGap()), again: longer}
	if alone && (v.pod.UID == "" || errors.Is(v.memErr, errNoSource)) {
		d.again = never
	}
	return d
}

// note adds a sentence to an allocation's notes.
func note(a *Allocation, format string, args ...any) *Allocation {
	a.Notes = append(a.Notes, fmt.Sprintf(format, args...))
	return a
}

// memoryGap tells why the checkpoint has no answer.
func (v *view) memoryGap() error {
	if v.memErr != nil {
		return v.memErr
	}
	return fmt.Errorf("no entry for UID %q", v.pod.UID)
}

// decideMemory decides when the checkpoint has entries of the pod and the API has
// nothing.
func (v *view) decideMemory() decision {
	if errors.Is(v.liveErr, errNoSource) {
		return decision{alloc: v.join(nil)}
	}
	why := "lists none for the pod"
	if v.liveErr != nil {
		why = "does not answer: " + v.liveErr.Error()
	}
	return decision{alloc: note(v.join(nil), "devices are from the checkpoint alone, because the kubelet's API %s", why), again: longer}
}

// decideLive decides when the API has devices that the checkpoint does not confirm.
func (v *view) decideLive() decision {
	if errors.Is(v.memErr, errNoSource) {
		return decision{alloc: v.join(v.live)}
	}
	if v.memErr != nil {
		return decision{alloc: note(v.join(v.live), "devices are from the kubelet's API alone, because the checkpoint is unusable: %v", v.memErr)}
	}
	if v.pod.UID == "" {
		return decision{alloc: note(v.join(v.live), "devices were found by the pod's name alone, because the runtime gave no UID")}
	}
	if rest, d, uid := v.apart(); uid != "" {
		if len(v.own) == 0 {
			return decision{err: fmt.Errorf("%w: device %s of %s is allocated to pod UID %s", ErrOtherPod, d.ID, d.Resource, uid), again: longer}
		}
		if v.agree(rest) { // the API lists an older pod of the name beside this one
			return decision{alloc: note(v.join(rest), "the kubelet's API gives device %s of %s to a pod of this name as well, the checkpoint to pod UID %s", d.ID, d.Resource, uid)}
		}
		return decision{err: fmt.Errorf("%w: the API gives device %s of %s to pod %s/%s, the checkpoint to pod UID %s",
			ErrConflict, d.ID, d.Resource, v.pod.Namespace, v.pod.Name, uid), again: once}
	}
	a := v.join(v.live)
	if len(v.own) == 0 {
		return decision{alloc: note(a, "devices are from the kubelet's API alone, because the checkpoint has none of them"), again: once}
	}
	return decision{alloc: note(a, "the checkpoint differs from the kubelet's API, whose answer is used"), again: once}
}

// apart returns the live devices without those that the checkpoint attributes to other
// pods but not to this one. theirs is the first of the latter, and uid that of one
// of its pods; uid is empty if there is no such device.
func (v *view) apart() (rest []ContainerDevice, theirs ContainerDevice, uid string) {
	for _, d := range v.live {
		holders := v.mem.Holders(d.Resource, d.ID)
		mine := slices.ContainsFunc(holders, func(e checkpoint.Entry) bool { return e.PodUID == v.pod.UID })
		switch {
		case mine || len(holders) == 0:
			rest = append(rest, d)
		case uid == "":
			theirs, uid = d, holders[0].PodUID
		}
	}
	return rest, theirs, uid
}

// join merges live devices and the checkpoint's own entries into one list, each device
// once. If there are live devices, the checkpoint confirms them and adds the devices of
// ordinary init containers; everything else in it is left out with a note. If live is
// empty, all of its entries count.
func (v *view) join(live []ContainerDevice) *Allocation {
	j := joiner{index: map[holding]int{}, a: &Allocation{}}
	listed := make(map[holding]bool, len(live))
	for _, d := range live {
		listed[holding{d.Container, d.Resource, d.ID}] = true
		j.add(d, FromAPI)
	}
	order := map[holding]int{}
	for i := range v.own {
		e := &v.own[i]
		for at, id := range e.ResponseOrder() {
			order[holding{e.Container, e.Resource, id}] = at
		}
		counts := len(live) == 0 || v.plainInit(e.Container)
		for _, n := range e.Devices {
			for _, id := range n.IDs {
				if counts || listed[holding{e.Container, e.Resource, id}] {
					j.add(ContainerDevice{Container: e.Container, Resource: e.Resource, ID: id, NUMANodes: nodes(n.Node)}, FromCheckpoint)
				} else {
					note(j.a, "device %s of %s is left out: the checkpoint has it in container %s, where the kubelet's API does not list it", id, e.Resource, e.Container)
				}
			}
		}
	}
	v.arrange(j.a.Devices, order)
	return j.a
}

// nodes converts the checkpoint's NUMA node to a list.
func nodes(n int64) []int64 {
	if n == checkpoint.NoNUMA {
		return nil
	}
	return []int64{n}
}

// byContainer returns a comparison of container names by their order in the pod.
// Containers that the caller did not name come last, sorted by name.
func (p *Pod) byContainer() func(a, b string) int {
	rank := make(map[string]int, len(p.Containers))
	for i, c := range p.Containers {
		rank[c.Name] = i
	}
	of := func(name string) int {
		if i, known := rank[name]; known {
			return i
		}
		return len(rank)
	}
	return func(a, b string) int { return cmp.Or(cmp.Compare(of(a), of(b)), cmp.Compare(a, b)) }
}

// arrange sorts holders and devices in the pod's order, and sets the devices'
// PluginIndex.
func (v *view) arrange(devices []Device, order map[holding]int) {
	inPod := v.pod.byContainer()
	for i := range devices {
		d := &devices[i]
		slices.SortFunc(d.Containers, inPod)
		if at, ok := order[holding{d.Containers[0], d.Resource, d.ID}]; ok {
			d.PluginIndex = at
		}
	}
	slices.SortFunc(devices, func(a, b Device) int {
		return cmp.Or(inPod(a.Containers[0], b.Containers[0]), cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.ID, b.ID))
	})
}

// joiner collects devices, each once.
type joiner struct {
	a     *Allocation
	index map[holding]int // keys have no container
}

// add adds a device of a container to the list. A device that both sources know becomes
// FromBoth.
func (j *joiner) add(d ContainerDevice, source string) {
	k := holding{resource: d.Resource, id: d.ID}
	i, ok := j.index[k]
	if !ok {
		i = len(j.a.Devices)
		j.index[k] = i
		j.a.Devices = append(j.a.Devices, Device{Resource: d.Resource, ID: d.ID, PluginIndex: -1, Source: source})
	}
	out := &j.a.Devices[i]
	if out.Source != source {
		out.Source = FromBoth
	}
	for _, node := range d.NUMANodes { // the checkpoint lists a device once for each of its nodes
		if at, known := slices.BinarySearch(out.NUMANodes, node); !known {
			out.NUMANodes = slices.Insert(out.NUMANodes, at, node)
		}
	}
	if !slices.Contains(out.Containers, d.Container) {
		out.Containers = append(out.Containers, d.Container)
	}
}
