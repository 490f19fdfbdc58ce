package planner

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/podresources"
)

// refuseClaim explains why request i gets no device if resource claims are the reason.
// It returns nil if they are not.
func (b *builder) refuseClaim(l *ledger, i int, resource string) error {
	r := &b.requests[i]
	if r.Claim != "" {
		return b.refuseNamed(l, r, resource)
	}
	return b.claimsErr()
}

// unknown returns a claim's device that may belong to resource although no source says
// so, nil when there is none. It prefers a device whose source may say so later.
func (l *ledger) unknown(resource string) *podresources.Device {
	var out *podresources.Device
	for j := range l.devices {
		d := &l.devices[j]
		if d.Claim == nil || d.Claim.Gap == nil || d.Resource != resource && d.Resource != "" {
			continue
		}
		if out == nil || gapKind(d) == cnierr.TryAgain && gapKind(out) != cnierr.TryAgain {
			out = d
		}
	}
	return out
}

// claimsErr says why the devices of claims are not known; nil when they are.
func (b *builder) claimsErr() error {
	a := b.src.Allocation
	if a == nil || a.ClaimsErr == nil {
		return nil
	}
	return cnierr.New("read resource claims", cnierr.TryAgain, "%w", a.ClaimsErr).
		WithFix("see whether the kubelet's PodResources socket and its checkpoint dra_manager_state are readable")
}

// refuseNamed explains why there is no device of the claim that the selection names.
func (b *builder) refuseNamed(l *ledger, r *request, resource string) error {
	const op = "assign device of claim"
	var names []string
	var claim *podresources.PodClaim
	if b.pod != nil {
		for j := range b.pod.Claims {
			c := &b.pod.Claims[j]
			names = append(names, c.Name)
			if c.Name == r.Claim {
				claim = c
			}
		}
	}
	if claim == nil {
		return cnierr.New(op, cnierr.InvalidAnnotation, "the pod has no resource claim %s; it has: %s", r.Claim, list(names)).
			WithFix("name an entry of the pod's spec.resourceClaims, or add %s there", r.Claim)
	}
	if err := b.claimsErr(); err != nil {
		return err
	}
	var of []*podresources.Device
	for j := range l.devices {
		if c := l.devices[j].Claim; c != nil && c.PodClaim == r.Claim {
			of = append(of, &l.devices[j])
		}
	}
	if len(of) == 0 {
		return cnierr.New(op, cnierr.TryAgain, "the kubelet has prepared no device of claim %s (%s)", r.Claim, object(claim)).
			WithFix("see status.allocation of the ResourceClaim and the kubelet's log: the claim is not allocated yet, its driver does not answer, or no container uses it")
	}
	return l.refuseAmong(of, r, resource)
}

// refuseAmong explains why the request gets none of the claim's devices.
func (l *ledger) refuseAmong(of []*podresources.Device, r *request, resource string) error {
	const op = "assign device of claim"
	var requests, resources []string
	for _, d := range of {
		requests, resources = append(requests, d.Claim.Requests...), append(resources, d.Resource)
		if !r.wants(d, resource) {
			continue
		}
		if by, used := l.taken[l.key(d)]; used {
			return cnierr.New(op, cnierr.DeviceConflict, "%s already serves network %s", d.Claim, by.network).
				About(cnierr.Subject{Resource: resource, Device: d.ID}).
				WithFix("let the claim request one more device, or select one network fewer")
		}
		return cnierr.New(op, gapKind(d), "%s: %w", d.Claim, d.Claim.Gap).
			About(cnierr.Subject{Resource: resource}).WithFix(publish)
	}
	fits := func(d *podresources.Device) bool { return r.Request == "" || d.Claim.Serves(r.Request) }
	switch {
	case slices.ContainsFunc(of, func(d *podresources.Device) bool { return len(d.Claim.Requests) == 0 }) && !slices.ContainsFunc(of, fits):
		return cnierr.New(op, cnierr.TryAgain, "neither the kubelet nor device metadata tells which device serves request %s of claim %s", r.Request, r.Claim).
			WithFix("see whether the kubelet's checkpoint dra_manager_state is readable, or drop the request from the annotation")
	case !slices.ContainsFunc(of, fits):
		return cnierr.New(op, cnierr.InvalidAnnotation, "no device of claim %s serves request %s; the requests are: %s", r.Claim, r.Request, list(requests)).
			WithFix("name one of them in the annotation")
	}
	return cnierr.New(op, cnierr.NoDevice, "the devices of claim %s are not of this resource, in that container or of that ID; they are of: %s", r.Claim, list(resources)).
		About(cnierr.Subject{Resource: resource}).
		WithFix("correct the annotation, or the definition's resourceName")
}

// publish says what to do when the resource of a claim's device is unknown.
const publish = "let the driver publish the attributes, as device metadata or, with resourceSlices in the agent's configuration, in ResourceSlices; " +
	"a device without a resource name serves a selection that names its claim"

// gapKind is the kind of error for a claim's device whose attributes have a gap.
func gapKind(d *podresources.Device) cnierr.Kind {
	if errors.Is(d.Claim.Gap, podresources.ErrUnavailable) {
		return cnierr.TryAgain
	}
	return cnierr.NoDevice
}

// contradiction refuses a device whose attributes name two PCI functions.
func contradiction(d *podresources.Device) error {
	if d.Claim == nil {
		return nil
	}
	id, bus := pciAddress(d.ID), pciAddress(d.Claim.Attributes.PCIBusID)
	if id == "" || bus == "" || id == bus {
		return nil
	}
	return cnierr.New("assign device of claim", cnierr.DeviceConflict, "%s: %s says %s, %s says %s",
		d.Claim, podresources.AttributeDeviceID, id, podresources.AttributePCIBusID, bus).
		About(cnierr.Subject{Resource: d.Resource, Device: d.ID}).
		WithFix("check what the driver publishes about the device in its metadata and ResourceSlices")
}

// object names the ResourceClaim behind a pod's claim.
func object(c *podresources.PodClaim) string {
	if c.Claim == "" {
		return "created from a template"
	}
	return fmt.Sprintf("ResourceClaim %s", c.Claim)
}

// list formats names, sorted and each once.
func list(names []string) string {
	names = slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" })
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "(none)"
	}
	return strings.Join(names, ", ")
}
