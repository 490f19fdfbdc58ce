package podresources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/checkpoint"
)

// Live is the API as a Reader needs it; *Client is the real one.
type Live interface {
	Get(ctx context.Context, pod PodKey) ([]ContainerDevice, error)
	List(ctx context.Context) (map[PodKey][]ContainerDevice, error)
}

// Memory is the checkpoint as a Reader needs it; *checkpoint.File is the real
// one.
type Memory interface {
	Load() (*checkpoint.Checkpoint, error)
}

// Reader joins the sources. It is safe for concurrent use.
type Reader struct {
	live   *shared // nil without the API
	memory Memory  // nil without the checkpoint
	retry  time.Duration
}

// Options of a Reader; the zero value is right for a node.
type Options struct {
	// Retry is how long to ask again while the sources do not yet agree; 0 means
	// 600 ms. After a kubelet restart the API knows no pods for some seconds;
	// the checkpoint answers then, so waiting longer gains nothing.
	Retry time.Duration
}

// NewReader returns a Reader of the API and the checkpoint. Either may be nil:
// each alone suffices.
func NewReader(live Live, memory Memory, o Options) *Reader {
	r := &Reader{memory: memory, retry: o.Retry}
	if live != nil {
		r.live = newShared(live)
	}
	if r.retry == 0 {
		r.retry = 600 * time.Millisecond
	}
	return r
}

// retryStep is the pause between two looks at sources that do not agree.
const retryStep = 100 * time.Millisecond

// Devices returns what is allocated to the pod, of all resources. resources are
// those of which the caller needs devices: while one of them is missing, an
// older answer is not trusted.
func (r *Reader) Devices(ctx context.Context, pod Pod, resources []string) (*Allocation, error) {
	deadline := time.Now().Add(r.retry)
	fresh := false
	for {
		v := r.look(ctx, pod, resources, fresh)
		alloc, settled, err := v.judge()
		if settled || ctx.Err() != nil || time.Now().After(deadline) {
			return alloc, err
		}
		fresh = true
		select {
		case <-ctx.Done():
		case <-time.After(retryStep):
		}
	}
}

// view is one look at both sources.
type view struct {
	pod     Pod
	live    []ContainerDevice
	liveErr error // why there is no live answer; nil when live is one
	mem     *checkpoint.Checkpoint
	memErr  error
	own     []checkpoint.Entry // of the pod's UID
}

// errNoSource stands for a source that is not configured.
var errNoSource = errors.New("not configured")

// look reads the checkpoint, then the API: the kubelet writes the checkpoint
// before it starts a pod, so that the later look is the one at the present.
func (r *Reader) look(ctx context.Context, pod Pod, resources []string, fresh bool) *view {
	v := &view{pod: pod, memErr: errNoSource, liveErr: errNoSource}
	if r.memory != nil {
		v.mem, v.memErr = r.memory.Load()
	}
	if v.memErr == nil && pod.UID != "" {
		v.own = v.mem.Pod(pod.UID)
	}
	if r.live != nil {
		v.live, v.liveErr = r.live.devices(ctx, PodKey{pod.Namespace, pod.Name}, fresh, func(d []ContainerDevice) bool {
			return v.trusts(d, resources)
		})
	}
	return v
}

// trusts reports whether an answer from the cache is good for this pod: every
// wanted resource is in it, and the checkpoint says by UID that it is this
// pod's.
func (v *view) trusts(d []ContainerDevice, resources []string) bool {
	for _, want := range resources {
		if !slices.ContainsFunc(d, func(c ContainerDevice) bool { return c.Resource == want }) {
			return false
		}
	}
	return len(d) > 0 && len(v.own) > 0 && v.agree(d)
}

// agree reports whether live devices are the checkpoint's of this pod, ordinary
// init containers aside, which the API leaves out.
func (v *view) agree(live []ContainerDevice) bool {
	have := map[[3]string]bool{}
	for _, d := range live {
		have[[3]string{d.Container, d.Resource, d.ID}] = true
	}
	known := 0
	for _, e := range v.own {
		for _, id := range e.IDs() {
			switch {
			case have[[3]string{e.Container, e.Resource, id}]:
				known++
			case !v.plainInit(e.Container):
				return false
			}
		}
	}
	return known == len(have)
}

// plainInit reports whether a container is an ordinary init container.
func (v *view) plainInit(name string) bool {
	return slices.ContainsFunc(v.pod.Containers, func(c Container) bool { return c.Name == name && c.Init && !c.Restartable })
}

// judge applies the table of the package comment. settled says that looking
// again would not change the answer.
func (v *view) judge() (alloc *Allocation, settled bool, err error) {
	switch {
	case v.liveErr == nil && len(v.live) > 0:
		return v.judgeLive()
	case len(v.own) > 0:
		why := "lists none"
		if v.liveErr != nil {
			why = "does not answer (" + v.liveErr.Error() + ")"
		}
		a := v.join(nil)
		a.Notes = append(a.Notes, "devices are from the checkpoint: the kubelet's API "+why)
		return a, errors.Is(v.liveErr, errNoSource), nil
	case v.liveErr == nil:
		return &Allocation{}, v.memErr == nil, nil
	case v.memErr == nil && errors.Is(v.liveErr, errNoSource):
		return &Allocation{}, true, nil
	}
	return nil, false, fmt.Errorf("%w: API: %w; checkpoint: %w", ErrUnavailable, v.liveErr, v.memoryGap())
}

// memoryGap says why the checkpoint has no answer.
func (v *view) memoryGap() error {
	if v.memErr != nil {
		return v.memErr
	}
	return fmt.Errorf("no entry for UID %q", v.pod.UID)
}

// judgeLive decides when the API lists devices.
func (v *view) judgeLive() (*Allocation, bool, error) {
	if v.memErr != nil {
		a := v.join(v.live)
		if !errors.Is(v.memErr, errNoSource) && !errors.Is(v.memErr, os.ErrNotExist) {
			a.Notes = append(a.Notes, "the checkpoint is not usable: "+v.memErr.Error())
		}
		return a, true, nil
	}
	if v.pod.UID == "" {
		a := v.join(v.live)
		a.Notes = append(a.Notes, "the runtime gave no pod UID: devices are by name alone")
		return a, true, nil
	}
	if len(v.own) > 0 && v.agree(v.live) {
		return v.join(v.live), true, nil
	}
	if d, uid := v.foreign(); uid != "" {
		kind := ErrConflict
		if len(v.own) == 0 {
			kind = ErrOtherPod
		}
		return nil, false, fmt.Errorf("%w: device %s of %s belongs to pod UID %s", kind, d.ID, d.Resource, uid)
	}
	a := v.join(v.live)
	a.Notes = append(a.Notes, "the checkpoint lags behind the kubelet's API, which is followed")
	return a, false, nil
}

// foreign returns a live device that the checkpoint gives to another pod and not
// to this one.
func (v *view) foreign() (ContainerDevice, string) {
	for _, d := range v.live {
		holders := v.mem.Holders(d.Resource, d.ID)
		mine := slices.ContainsFunc(holders, func(e checkpoint.Entry) bool { return e.PodUID == v.pod.UID })
		if len(holders) > 0 && !mine {
			return d, holders[0].PodUID
		}
	}
	return ContainerDevice{}, ""
}

// join merges live devices with the checkpoint's own entries into one list,
// each device once. With live devices the checkpoint adds those of ordinary
// init containers only; without, all.
func (v *view) join(live []ContainerDevice) *Allocation {
	j := joiner{index: map[[2]string]int{}}
	order := v.pluginOrder()
	for _, d := range live {
		j.add(d, FromAPI, order)
	}
	for _, e := range v.own {
		if live != nil && !v.plainInit(e.Container) && !j.holds(e) {
			continue
		}
		for _, n := range e.Devices {
			var nodes []int64
			if n.Node != checkpoint.NoNUMA {
				nodes = []int64{n.Node}
			}
			for _, id := range n.IDs {
				j.add(ContainerDevice{e.Container, e.Resource, id, nodes}, FromCheckpoint, order)
			}
		}
	}
	rank := map[string]int{}
	for i, c := range v.pod.Containers {
		rank[c.Name] = i
	}
	for i := range j.out {
		slices.SortStableFunc(j.out[i].Containers, func(a, b string) int { return rank[a] - rank[b] })
	}
	return &Allocation{Devices: j.out}
}

// joiner collects devices, each once.
type joiner struct {
	out   []Device
	index map[[2]string]int
}

// holds reports whether all devices of an entry are in already.
func (j *joiner) holds(e checkpoint.Entry) bool {
	return !slices.ContainsFunc(e.IDs(), func(id string) bool { _, ok := j.index[[2]string{e.Resource, id}]; return !ok })
}

func (j *joiner) add(d ContainerDevice, source string, order map[[3]string]int) {
	k := [2]string{d.Resource, d.ID}
	i, ok := j.index[k]
	if !ok {
		i = len(j.out)
		j.index[k] = i
		plugin, known := order[[3]string{d.Container, d.Resource, d.ID}]
		if !known {
			plugin = -1
		}
		j.out = append(j.out, Device{Resource: d.Resource, ID: d.ID, NUMANodes: d.NUMANodes, PluginIndex: plugin, Source: source})
	}
	out := &j.out[i]
	if out.Source != source {
		out.Source = FromBoth
	}
	if !slices.Contains(out.Containers, d.Container) {
		out.Containers = append(out.Containers, d.Container)
	}
}

// pluginOrder returns each device's position in its device plugin's answer.
func (v *view) pluginOrder() map[[3]string]int {
	out := map[[3]string]int{}
	for _, e := range v.own {
		for i, id := range e.ResponseOrder() {
			out[[3]string{e.Container, e.Resource, id}] = i
		}
	}
	return out
}
