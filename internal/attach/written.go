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

// A configuration can name a VF that nobody allocated to the pod. The delegate
// configures that VF or moves it into the pod all the same. So the VF gets a claim like
// any other: it cannot be the VF of another pod, and it is restored when the pod ends.

// ownWritten gives each attachment without a device the VF that its configuration
// names. It refuses an attachment whose configuration names a VF other than its own,
// because a sandbox claims only the device that the plan has.
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

// own makes the VF f the attachment's device, unless the pod already has it.
func own(p *plan.Plan, a *plan.Attachment, text string, f *sriov.Function) error {
	for _, b := range p.Attachments {
		if b.Device != nil && b.Device.PCIAddress == f.Address {
			return nil
		}
	}
	if d := a.Device; d != nil {
		return cnierr.New("assign device", cnierr.DeviceConflict, "the configuration also names VF %s (%.64q), which is not the pod's", f.Address, text).
			WithFix("remove the device from the configuration")
	}
	a.Device = &plan.Device{ID: text, Source: "the configuration", Reason: "named by the configuration itself", Written: true}
	verify.StandsOn(a.Device, f)
	return nil
}

// vfWritten returns the VF that a configuration names, by address or netdev or the MAC
// of its netdev; nil for none. When several netdevs share a MAC, as a VF and its VLANs
// do, it takes the first, as host-device does.
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
