package fakekubelet

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// ErrNoDevices means that a container asks for more devices than are free.
var ErrNoDevices = errors.New("not enough free devices")

// Device is a device of a built-in device plugin.
type Device struct {
	ID        string
	NUMA      int64 // NUMA node; checkpoint.NoNUMA for none
	Unhealthy bool  // advertised, but neither allocatable nor among the checkpoint's registered devices
}

// resource is what the kubelet knows of an extended resource.
type resource struct {
	order     []string // device IDs as advertised
	devices   map[string]advertised
	endpoints []*endpoint // device plugins, the last one serves; empty when built in
	builtin   bool
	live      bool // advertised since the process started; otherwise every device counts as unhealthy
}

// advertised is a device as its plugin last described it.
type advertised struct {
	nodes   []int64 // NUMA nodes; empty means no affinity
	healthy bool
}

// healthy returns the IDs of usable devices, in the order advertised.
func (r *resource) healthy() []string {
	if r == nil || !r.live {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(r.order), func(id string) bool { return !r.devices[id].healthy })
}

// serving returns the device plugin that allocates, or nil for the built-in one.
func (r *resource) serving() *endpoint {
	if len(r.endpoints) == 0 {
		return nil
	}
	return r.endpoints[len(r.endpoints)-1]
}

// set replaces the devices.
func (r *resource) set(order []string, devices map[string]advertised) {
	r.order, r.devices, r.live = order, devices, true
}

// SetDevices sets the devices of a resource, as if a device plugin inside the
// kubelet advertised them, and writes the checkpoint. Allocated devices stay
// allocated. It fails unless name is an extended resource that no real device
// plugin serves and the IDs are unique.
func (k *Kubelet) SetDevices(name string, devices ...Device) error {
	if err := checkResourceName(name); err != nil {
		return err
	}
	var order []string
	byID := map[string]advertised{}
	for _, d := range devices {
		if _, twice := byID[d.ID]; twice || d.ID == "" || d.NUMA < checkpoint.NoNUMA {
			return fmt.Errorf("device %q of %s: the ID is empty or used twice, or there is no NUMA node %d", d.ID, name, d.NUMA)
		}
		a := advertised{healthy: !d.Unhealthy}
		if d.NUMA != checkpoint.NoNUMA {
			a.nodes = []int64{d.NUMA}
		}
		order = append(order, d.ID)
		byID[d.ID] = a
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.resource(name)
	if r.serving() != nil {
		return fmt.Errorf("resource %s is served by a device plugin", name)
	}
	r.set(order, byID)
	r.builtin, r.live = true, k.phase >= Registered
	if !r.live {
		return nil // they register with the phase
	}
	return k.persist()
}

// resource returns a resource and creates it if needed; mu is held.
func (k *Kubelet) resource(name string) *resource {
	r := k.resources[name]
	if r == nil {
		r = &resource{devices: map[string]advertised{}}
		k.resources[name] = r
	}
	return r
}

// registerBuiltins registers the built-in devices after a restart; mu is held.
func (k *Kubelet) registerBuiltins() error {
	changed := false
	for _, r := range k.resources {
		if r.builtin && r.serving() == nil {
			r.live, changed = true, true
		}
	}
	if !changed {
		return nil
	}
	return k.persist()
}

// checkResourceName rejects a name that a kubelet would not accept for an extended
// resource, which is a non-native domain, a slash and a name.
func checkResourceName(name string) error {
	domain, _, found := strings.Cut(name, "/")
	native := !found || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io")
	if native || strings.HasPrefix(name, "requests.") {
		return fmt.Errorf("%q is not the name of an extended resource", name)
	}
	if why := validation.IsQualifiedName(name); len(why) > 0 {
		return fmt.Errorf("%q is not the name of an extended resource: %s", name, strings.Join(why, "; "))
	}
	return nil
}

// entry is an allocation: the devices of one resource that a container holds, as
// the device manager remembers them.
type entry struct {
	podUID    string
	container string
	resource  string
	devices   []checkpoint.NUMADevices
	resp      *dpv1.ContainerAllocateResponse
}

// ids returns the entry's devices. A device of two NUMA nodes is listed under both,
// but is one device.
func (e *entry) ids() sets.Set[string] {
	out := sets.New[string]()
	for _, n := range e.devices {
		out.Insert(n.IDs...)
	}
	return out
}

// byNode groups devices by NUMA node, shuffled within a node; mu is held.
func (k *Kubelet) byNode(resource string, ids []string) []checkpoint.NUMADevices {
	groups := map[int64][]string{}
	for _, id := range shuffled(k, ids) {
		nodes := k.resource(resource).devices[id].nodes
		if len(nodes) == 0 {
			nodes = []int64{checkpoint.NoNUMA}
		}
		for _, n := range nodes {
			groups[n] = append(groups[n], id)
		}
	}
	var out []checkpoint.NUMADevices
	for _, n := range sets.List(sets.KeySet(groups)) {
		out = append(out, checkpoint.NUMADevices{Node: n, IDs: groups[n]})
	}
	return out
}
