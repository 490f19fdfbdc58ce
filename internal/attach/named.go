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

// A device plugin may call a VF by its network device. Such a name means something in
// the host's network namespace alone, which the planner need not be in, and goes with
// the network device into a pod. What it names is told by the host while the network
// device is there, and otherwise by the journal of the sandbox that has the VF: then
// the VF has a claim like any other, and the next pod waits for it, or gets it as that
// sandbox found it, under its name.

// nameVFs completes the plan's devices that are called by the network devices of VFs.
// An ID that is nobody's name is the device plugin's own word, of which nothing is
// known.
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
	// A DEL puts the network device back before it ends its journal: where neither has
	// the name the first time, it may have come back between the looks.
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
				WithFix("see that the pod of the damaged journal is deleted, whose DEL sets the file aside")
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
