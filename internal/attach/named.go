package attach

import (
	"context"
	"errors"
	"os"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// A device plugin may name a VF by its netdev. Such a name means something only in the
// host's network namespace, where the planner need not be, and the netdev takes the
// name with it into a pod. While the netdev is on the host, the host tells which VF the
// name means; otherwise the journal of the sandbox that has the VF tells. With that the
// VF has a claim like any other: the next pod waits for it, or gets it restored and
// under this name.

// nameVFs completes the plan's devices whose IDs are netdev names of VFs. Any other ID
// is the device plugin's own, and nothing is known about its device.
func (r *run) nameVFs(ctx context.Context, p *plan.Plan) error {
	for i := range p.Attachments {
		a := &p.Attachments[i]
		if a.Device == nil || a.Device.PCIAddress != "" || sriov.IsAuxiliary(a.Device.ID) {
			continue
		}
		if err := r.nameVF(ctx, a); err != nil {
			return cnierr.Annotate(err, subjectOf(p, a))
		}
	}
	return nil
}

// nameVF completes the device of one attachment.
func (r *run) nameVF(ctx context.Context, a *plan.Attachment) error {
	// DEL returns the netdev before it removes its journal. When the first look finds
	// the name in neither place, the netdev may have come back in between.
	for range 2 {
		f, err := r.host().VFOfNetDev(a.Device.ID)
		if err == nil {
			verify.StandsOn(a.Device, f)
			return nil
		}
		if errors.Is(err, os.ErrInvalid) || errors.Is(err, sriov.ErrNotPCI) || errors.Is(err, sriov.ErrNotVF) {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return cnierr.New("look up device", cnierr.IO, "%w", err)
		}
		had, err := r.Journal.Had(ctx, keyOf(r.inv), a.Device)
		if err != nil {
			return cnierr.New("look up device", cnierr.TryAgain, "it may be the network device of a VF that another pod has: %w", err).
				WithFix("delete the pod of the damaged journal: the DEL sets the file aside")
		}
		if had != nil {
			d, of := a.Device, had.Device
			d.PCIAddress, d.PF, d.VFIndex, d.Driver, d.Userspace = of.PCIAddress, of.PF, of.VFIndex, of.Driver, of.Userspace
			if a.DeviceInfo == nil {
				a.DeviceInfo = had.DeviceInfo
			}
			return nil
		}
	}
	return nil
}
