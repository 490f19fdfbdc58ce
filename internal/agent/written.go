package agent

import (
	"context"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// notAnothers refuses a plan in which a configuration itself names a VF that the
// kubelet has allocated to another pod. Otherwise whoever may write a definition could
// reconfigure that pod's VF, or take it away. A VF that nobody holds is left to the
// plugin, which claims it.
func (a *Agent) notAnothers(ctx context.Context, p *plan.Plan, host sriov.Host) error {
	if a.src.Holders == nil {
		return nil
	}
	var holders map[string]nodeview.Holder
	for i := range p.Attachments {
		t := &p.Attachments[i]
		for _, text := range t.Written {
			f, err := host.VFWritten(text)
			if err == nil && (f == nil || t.Device != nil && t.Device.PCIAddress == f.Address) {
				continue
			}
			if err == nil && holders == nil {
				holders, err = a.src.Holders(ctx)
			}
			s := cnierr.Subject{Pod: p.Pod.String(), Network: t.Name, Interface: t.IfName, Device: text}
			if err != nil {
				return cnierr.New("look up device", cnierr.TryAgain, "the configuration names it, and its holder is unknown: %w", err).
					About(s).WithFix("check that the kubelet's PodResources socket and device-manager checkpoint are readable")
			}
			if err := taken(holders[f.Address], p.Pod, f.Address); err != nil {
				return err.About(s)
			}
		}
	}
	return nil
}

// taken returns the error for a VF that another pod holds. It is nil if no pod holds
// the VF, or if the holder is unknown.
func taken(h nodeview.Holder, pod plan.Pod, address string) *cnierr.Error {
	owner := h.Pod
	if owner == "" {
		owner = h.PodUID
	}
	if owner == "" || h.Pod == pod.String() || h.PodUID == pod.UID && pod.UID != "" {
		return nil
	}
	return cnierr.New("assign device", cnierr.DeviceConflict, "the configuration itself names VF %s, which the kubelet has given to pod %s", address, owner).
		WithFix("remove the device from the configuration, and set the annotation resourceName to %s, so that each pod gets a device of its own", h.Resource)
}
