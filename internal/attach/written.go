package attach

import (
	"bytes"
	"net"
	"slices"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// A configuration can name a VF itself, which nobody has allocated to the pod. The
// delegate sets it, or moves it into the pod, all the same: so it has a claim like any
// other, by which a pod's VF is nobody else's, and is made as it was when the pod ends.

// ownWritten gives attachments without a device the VF that their configuration names.
// One that names another VF than its own is refused, since a sandbox claims what the
// plan says alone.
func (r *run) ownWritten(p *plan.Plan) error {
	for i := range p.Attachments {
		a := &p.Attachments[i]
		for _, text := range a.Written {
			f, err := r.vfWritten(text)
			if err == nil && f != nil {
				err = own(p, a, text, f)
			}
			if err != nil {
				return cnierr.Annotate(err, subjectOf(p, a))
			}
		}
	}
	return nil
}

// own makes a VF the attachment's, unless the pod has it already.
func own(p *plan.Plan, a *plan.Attachment, text string, f *sriov.Function) error {
	for _, b := range p.Attachments {
		if b.Device != nil && b.Device.PCIAddress == f.Address {
			return nil
		}
	}
	if d := a.Device; d != nil {
		return cnierr.New("assign device", cnierr.DeviceConflict, "the configuration names VF %s (%.64q) beside it, which is not the pod's", f.Address, text).
			WithFix("take the device out of the configuration")
	}
	a.Device = &plan.Device{ID: text, Source: "the configuration", Reason: "named by the configuration itself", Written: true}
	verify.StandsOn(a.Device, f)
	return nil
}

// vfWritten returns the VF that a configuration names, also by the MAC of its network
// device; nil for none. Of several with a MAC, as a VF and the VLANs on it, host-device
// takes the first.
func (r *run) vfWritten(text string) (*sriov.Function, error) {
	if mac, err := net.ParseMAC(text); err == nil {
		links, err := net.Interfaces()
		if err != nil {
			return nil, cnierr.New("look up device", cnierr.IO, "%w", err)
		}
		i := slices.IndexFunc(links, func(l net.Interface) bool { return bytes.Equal(l.HardwareAddr, mac) })
		if i < 0 {
			return nil, nil
		}
		text = links[i].Name
	}
	f, err := r.host().VFWritten(text)
	if err != nil {
		return nil, cnierr.New("look up device", cnierr.IO, "%w", err)
	}
	return f, nil
}
