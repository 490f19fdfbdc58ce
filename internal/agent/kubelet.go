package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// kubelet is the sources that tell which devices the kubelet has allocated to pods.
type kubelet struct {
	file   *checkpoint.File     // nil for none
	live   *podresources.Client // nil for none
	claims podresources.Options // of resource claims
	fs     sriov.FS
}

// newKubelet connects to the sources of the configuration. published may be nil.
func newKubelet(c *configfile.Agent, published *kube.Slices) *kubelet {
	k := &kubelet{fs: sriov.FS{Root: c.SysRoot}}
	if c.Checkpoint != "" {
		k.file = checkpoint.NewFile(c.Checkpoint)
	}
	if c.PodResources != "" {
		k.live = podresources.NewClient(c.PodResources)
	}
	if c.ClaimCheckpoint != "" {
		k.claims.Claims = checkpoint.NewClaimFile(c.ClaimCheckpoint)
	}
	if c.DeviceMetadata != "" {
		k.claims.Attributes = append(k.claims.Attributes, podresources.Metadata(c.DeviceMetadata))
	}
	if published != nil {
		k.claims.Attributes = append(k.claims.Attributes, published)
	}
	return k
}

// close closes the connection to the PodResources API.
func (k *kubelet) close() error {
	if k.live == nil {
		return nil
	}
	return k.live.Close()
}

// holders returns the holders of allocated devices, by PCI address. A device whose
// function is not known is left out. Of two holders, under names of two resources, the
// one that the PodResources API tells counts, since the checkpoint may be old.
func (k *kubelet) holders(ctx context.Context) (map[string]nodeview.Holder, error) {
	held, _, err := k.held(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]nodeview.Holder{}
	for _, d := range sorted(held) {
		address, h := k.function(d.id), held[d]
		if address != "" && (h.Pod != "" || out[address].Pod == "") {
			out[address] = h
		}
	}
	return out, nil
}

// allocated returns what the kubelet has allocated to pods; a VF that is not listed
// belongs to nobody. Only the checkpoint can tell: for some seconds after its start a
// kubelet lists no pods, or only the first few, while others hold devices. A device of
// a claim that cannot be identified may be any VF. Then the allocation is unknown as a
// whole, which is an error.
func (k *kubelet) allocated(ctx context.Context) (*reconcile.Allocated, error) {
	if k.file == nil {
		return nil, errors.New("no checkpoint of the kubelet is configured, and nothing else names every allocated device")
	}
	c, err := k.file.Load()
	if err != nil {
		return nil, err
	}
	held, untold, err := k.held(ctx)
	if err == nil {
		err = untold
	}
	if err != nil {
		return nil, err
	}
	out := &reconcile.Allocated{Given: map[string]bool{}, Advertised: map[string]bool{}}
	for _, d := range sorted(held) {
		out.Given[k.function(d.id)] = true
		if k.opaque(d.id) {
			h := held[d]
			out.Opaque = append(out.Opaque, reconcile.Opaque{Resource: d.resource, ID: d.id, Pod: h.Pod, PodUID: h.PodUID})
		}
	}
	for _, ids := range c.Registered {
		for _, id := range ids {
			out.Advertised[k.function(id)] = true
		}
	}
	return out, nil
}

// function returns the address of the PCI function behind a device's ID, which may be
// the address itself, an auxiliary device of the function or its network device; else
// "".
func (k *kubelet) function(id string) string {
	if address, err := sriov.ParseAddress(id); err == nil {
		return address
	}
	if a, err := k.fs.Auxiliary(id); err == nil {
		return a.Parent
	}
	address, _ := k.fs.OfNetDev(id)
	return address
}

// opaque reports whether a device's ID may come to mean another function. The name of a
// network device does: the device leaves with the pod, and another device may then get
// its name.
func (k *kubelet) opaque(id string) bool {
	_, err := k.fs.Auxiliary(id)
	return err != nil && !sriov.IsAddress(id)
}

// device names a device. The ID alone does not: two device plugins may use the same.
type device struct{ resource, id string }

// sorted returns the devices in a stable order.
func sorted(held map[device]nodeview.Holder) []device {
	return slices.SortedFunc(maps.Keys(held), func(a, b device) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.resource, b.resource))
	})
}

// held returns the holders of devices from both sources: the checkpoint knows pods by
// UID, the PodResources API by name. An empty list of the API says nothing, because a
// kubelet that has just started knows no pods. untold is why a claim's device is
// missing from out.
func (k *kubelet) held(ctx context.Context) (out map[device]nodeview.Holder, untold, err error) {
	out = map[device]nodeview.Holder{}
	var problems []error
	known := false
	if k.file != nil {
		c, err := k.file.Load()
		if err == nil {
			known = true
			for _, e := range c.Entries {
				for _, n := range e.Devices {
					for _, id := range n.IDs {
						out[device{e.Resource, id}] = nodeview.Holder{PodUID: e.PodUID, Container: e.Container, Resource: e.Resource}
					}
				}
			}
		}
		problems = append(problems, err)
	}
	claimed, untold := k.prepared()
	if k.live != nil {
		pods, err := k.live.List(ctx)
		known = known || err == nil && len(pods) > 0
		for pod, devices := range pods {
			claimed = append(claimed, listed(out, pod, devices)...)
		}
		problems = append(problems, err)
	}
	if !known {
		return nil, nil, fmt.Errorf("neither the checkpoint nor the PodResources API tells which devices are allocated: %w", errors.Join(problems...))
	}
	return out, errors.Join(untold, k.identify(ctx, claimed, out)), nil
}

// listed adds the devices that the API lists for a pod to out, and returns those that
// belong to claims.
func listed(out map[device]nodeview.Holder, pod podresources.PodKey, devices []podresources.ContainerDevice) []claimHolder {
	var claimed []claimHolder
	for _, d := range devices {
		h := nodeview.Holder{Pod: pod.Namespace + "/" + pod.Name, Container: d.Container, Resource: d.Resource}
		if d.Claim != nil {
			claimed = append(claimed, claimHolder{podresources.Device{Claim: d.Claim}, h})
			continue
		}
		name := device{d.Resource, d.ID}
		if had := out[name]; had.Container == h.Container {
			h.PodUID = had.PodUID
		}
		out[name] = h
	}
	return claimed
}

// claimHolder is a claim's device and its holder.
type claimHolder struct {
	podresources.Device
	holder nodeview.Holder
}

// prepared returns the devices of all claims that the kubelet has prepared.
func (k *kubelet) prepared() ([]claimHolder, error) {
	if k.claims.Claims == nil {
		return nil, nil
	}
	all, err := k.claims.Claims.Load()
	if errors.Is(err, os.ErrNotExist) { // no claim was ever prepared on this node
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint of claims: %w", err)
	}
	var out []claimHolder
	for i := range all.All {
		c, h := &all.All[i], nodeview.Holder{}
		if len(c.PodUIDs) == 1 {
			h.PodUID = c.PodUIDs[0]
		}
		for _, d := range c.Devices {
			out = append(out, claimHolder{podresources.Device{Claim: podresources.NewClaimDevice(c, &d)}, h})
		}
	}
	return out, nil
}

// identify adds the holders of claims' devices to out. Its error lists the devices that
// cannot be identified in a stable order, because the reconciler logs a text only when
// it is new.
func (k *kubelet) identify(ctx context.Context, claimed []claimHolder, out map[device]nodeview.Holder) error {
	devices := make([]podresources.Device, 0, len(claimed))
	for _, c := range claimed {
		devices = append(devices, c.Device)
	}
	podresources.Identify(ctx, devices, k.claims.Attributes)
	untold := map[string]error{}
	for i, d := range devices {
		if d.ID == "" {
			untold[d.Claim.String()] = fmt.Errorf("%s: %w", d.Claim, d.Claim.Gap)
			continue
		}
		for _, id := range []string{d.ID, d.Claim.Attributes.PCIBusID} {
			h := claimed[i].holder
			if h.Resource = d.Resource; id == "" {
				continue
			}
			name := device{d.Resource, id}
			if h.PodUID == "" {
				h.PodUID = out[name].PodUID
			}
			out[name] = h
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(untold)) {
		errs = append(errs, untold[name])
	}
	return errors.Join(errs...)
}
