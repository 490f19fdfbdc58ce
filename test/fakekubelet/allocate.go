package fakekubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Pins are device IDs by container and resource, for containers that must get
// exactly these devices.
type Pins = map[string]map[string][]string

// reusable holds the devices, by resource, that a pod's ordinary init containers
// used and that its later containers get first.
type reusable map[string]sets.Set[string]

// claim is a container's request for devices of one resource.
type claim struct {
	podUID, container, resource string
	count                       int
	reuse                       sets.Set[string]
	pinned                      []string
}

// allocatePod allocates devices to a pod's containers in a kubelet's order: init
// containers, then the others. As in a kubelet, what was allocated before a failure
// stays recorded until it is purged.
func (k *Kubelet) allocatePod(ctx context.Context, pod *corev1.Pod, pins Pins) error {
	reuse := reusable{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if err := k.allocateContainer(ctx, pod, c, pins[c.Name], reuse); err != nil {
			return err
		}
		k.note(reuse, pod.UID, c.Name, !restartable(c))
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if err := k.allocateContainer(ctx, pod, c, pins[c.Name], reuse); err != nil {
			return err
		}
		k.note(reuse, pod.UID, c.Name, false)
	}
	return nil
}

// restartable reports whether an init container runs as long as its pod.
func restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// note adds a container's devices to the reusable ones, or removes them.
func (k *Kubelet) note(reuse reusable, uid types.UID, container string, add bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		if e.podUID != string(uid) || e.container != container {
			continue
		}
		if add {
			reuse[e.resource] = reuse[e.resource].Union(e.ids())
		} else {
			reuse[e.resource] = reuse[e.resource].Difference(e.ids())
		}
	}
}

// allocateContainer allocates the devices that a container's limits ask for and
// writes the checkpoint.
func (k *Kubelet) allocateContainer(ctx context.Context, pod *corev1.Pod, c *corev1.Container, pins map[string][]string, reuse reusable) error {
	purged, changed := false, false
	for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
		if !k.manages(string(name)) {
			continue
		}
		if !purged {
			k.purge()
			purged = true
		}
		quantity := c.Resources.Limits[name]
		given, err := k.allocate(ctx, claim{
			podUID: string(pod.UID), container: c.Name, resource: string(name), count: int(quantity.Value()),
			reuse: reuse[string(name)], pinned: pins[string(name)],
		})
		if err != nil {
			return fmt.Errorf("container %s, %s: %w", c.Name, name, err)
		}
		changed = changed || given
	}
	if !changed {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.persist()
}

// manages reports whether the device manager knows a resource: it was advertised,
// or devices of it are allocated.
func (k *Kubelet) manages(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.resources[name] != nil || slices.ContainsFunc(k.entries, func(e *entry) bool { return e.resource == name })
}

// purge forgets the allocations of pods that are gone or have ended, unless the
// kubelet does not know yet which pods there are.
func (k *Kubelet) purge() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase < Normal {
		return
	}
	k.entries = slices.DeleteFunc(k.entries, func(e *entry) bool {
		uid := types.UID(e.podUID)
		return uid != k.admitting && !active(k.pods[uid])
	})
}

// active reports whether a pod is known and has not ended.
func active(pod *corev1.Pod) bool {
	return pod != nil && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// allocate satisfies a claim and reports whether it allocated anything: a container
// that already has its devices, from before a restart, keeps them.
func (k *Kubelet) allocate(ctx context.Context, c claim) (bool, error) {
	ids, err := k.choose(ctx, c)
	if err != nil || len(ids) == 0 {
		return false, err
	}
	resp, err := k.respond(ctx, c.resource, ids)
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.entries = append(k.entries, &entry{
		podUID: c.podUID, container: c.container, resource: c.resource, devices: k.byNode(c.resource, ids), resp: resp,
	})
	return true, nil
}

// choose picks the devices for a claim, in the order in which it asks the device
// plugin for them. No devices and no error mean that none are needed.
func (k *Kubelet) choose(ctx context.Context, c claim) ([]string, error) {
	k.mu.Lock()
	held, r := k.held(c), k.resources[c.resource]
	healthy := r.healthy()
	free := slices.DeleteFunc(slices.Clone(healthy), k.inUse(c.resource).Has)
	k.mu.Unlock()
	switch {
	case held != nil && held.Len() != c.count:
		return nil, fmt.Errorf("asks for %d devices but holds %d", c.count, held.Len())
	case len(healthy) == 0:
		return nil, fmt.Errorf("%w: no device plugin advertises a healthy one", ErrNoDevices)
	case !sets.New(healthy...).IsSuperset(held):
		return nil, errors.New("a device that it holds is no longer healthy")
	case held != nil || c.count <= 0:
		return nil, nil
	}
	if c.pinned != nil {
		return pinned(c, free)
	}
	chosen := sets.List(c.reuse)
	chosen = chosen[:min(c.count, len(chosen))]
	if need := c.count - len(chosen); need > len(free) {
		return nil, fmt.Errorf("%w: %d more wanted, %d free", ErrNoDevices, need, len(free))
	}
	if len(chosen) < c.count {
		preferred, err := k.preferred(ctx, c, free, chosen)
		if err != nil {
			return nil, err
		}
		for _, id := range slices.Concat(preferred, free) {
			if len(chosen) < c.count && slices.Contains(free, id) && !slices.Contains(chosen, id) {
				chosen = append(chosen, id)
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return shuffled(k, chosen), nil
}

// pinned returns a claim's pinned devices if they are available to it.
func pinned(c claim, free []string) ([]string, error) {
	ids := sets.New(c.pinned...)
	if ids.Len() != len(c.pinned) || len(c.pinned) != c.count {
		return nil, fmt.Errorf("asks for %d devices, but %q are pinned", c.count, c.pinned)
	}
	if missing := ids.Difference(c.reuse.Union(sets.New(free...))); missing.Len() > 0 {
		return nil, fmt.Errorf("%w: %q are pinned, but %q are not free", ErrNoDevices, c.pinned, sets.List(missing))
	}
	return c.pinned, nil
}

// held returns the devices of the resource that the claim's container already has,
// or nil; mu is held.
func (k *Kubelet) held(c claim) sets.Set[string] {
	for _, e := range k.entries {
		if e.podUID == c.podUID && e.container == c.container && e.resource == c.resource {
			return e.ids()
		}
	}
	return nil
}

// inUse returns the allocated devices of a resource; mu is held.
func (k *Kubelet) inUse(resource string) sets.Set[string] {
	out := sets.New[string]()
	for _, e := range k.entries {
		if e.resource == resource {
			out.Insert(e.ids().UnsortedList()...)
		}
	}
	return out
}

// respond returns the device plugin's response for the devices: a real plugin's, or
// that of the built-in one, which lists them in the environment in the given order,
// as the SR-IOV device plugin does.
func (k *Kubelet) respond(ctx context.Context, name string, ids []string) (*dpv1.ContainerAllocateResponse, error) {
	k.mu.Lock()
	ep := k.resource(name).serving()
	k.mu.Unlock()
	if ep != nil {
		return ep.allocate(ctx, ids)
	}
	type generic struct {
		DeviceID string `json:"deviceID"`
	}
	info := map[string]map[string]generic{}
	for _, id := range ids {
		info[id] = map[string]generic{"generic": {id}}
	}
	raw, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("describe devices %q: %w", ids, err)
	}
	env := "PCIDEVICE_" + strings.ToUpper(strings.NewReplacer("/", "_", ".", "_", "-", "_").Replace(name))
	return &dpv1.ContainerAllocateResponse{Envs: map[string]string{env: strings.Join(ids, ","), env + "_INFO": string(raw)}}, nil
}
