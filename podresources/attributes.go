package podresources

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// The attributes of a claim's device that say what it is to a CNI plugin.
const (
	AttributeDeviceID     = "k8s.cni.cncf.io/deviceID"        // the ID that a CNI plugin is given
	AttributeResourceName = "k8s.cni.cncf.io/resourceName"    // the resource whose networks it serves
	AttributePCIBusID     = "resource.kubernetes.io/pciBusID" // the address of a PCI device
)

// Attributes are what a source says of one claim's device. What it does not know
// is empty.
type Attributes struct {
	DeviceID     string
	ResourceName string
	PCIBusID     string
	// Requests are the requests of the claim that the device serves, as in
	// [ClaimDevice].
	Requests []string
	// Source is who says so, for people; of several, all.
	Source string
	// Err is why the source does not know the device, nil when it does.
	// [ErrUnavailable] passes by itself.
	Err error
}

// set takes one attribute over, if it is one of those that count.
func (a *Attributes) set(name, value string) {
	switch name {
	case AttributeDeviceID:
		a.DeviceID = value
	case AttributeResourceName:
		a.ResourceName = value
	case AttributePCIBusID:
		a.PCIBusID = value
	}
}

// NewAttributes returns the attributes among those that a driver publishes of a
// device, by their full names.
func NewAttributes(published map[string]string) Attributes {
	var a Attributes
	for name, value := range published {
		a.set(name, value)
	}
	return a
}

// AttributeSource tells the attributes of claims' devices; [Metadata] is one.
type AttributeSource interface {
	// Attributes returns what is known of each device, in their order.
	Attributes(ctx context.Context, devices []*ClaimDevice) []Attributes
}

// Identify asks the sources, one after another, for the attributes of those
// devices that are of claims, and gives each its ID and resource in place. A later
// source is asked only for devices of which something is missing yet. [Reader]
// does it.
func Identify(ctx context.Context, devices []Device, sources []AttributeSource) {
	identify(ctx, devices, sources, func(*Device) {})
}

// identify is Identify. learned is called for a device whose requests a source
// told, before its resource is settled.
func identify(ctx context.Context, devices []Device, sources []AttributeSource, learned func(*Device)) {
	var all []*Device
	for i := range devices {
		if devices[i].Claim != nil {
			all = append(all, &devices[i])
		}
	}
	gaps := make(map[*Device][]error, len(all))
	for _, source := range sources {
		var open []*Device
		var claims []*ClaimDevice
		for _, d := range all {
			if !d.Claim.complete() {
				open, claims = append(open, d), append(claims, d.Claim)
			}
		}
		if len(open) == 0 {
			break
		}
		for i, got := range source.Attributes(ctx, claims) {
			knew := len(open[i].Claim.Requests) > 0
			open[i].Claim.merge(&got)
			if !knew && len(open[i].Claim.Requests) > 0 {
				learned(open[i])
			}
			if got.Err != nil {
				gaps[open[i]] = append(gaps[open[i]], got.Err)
			}
		}
	}
	for _, d := range all {
		d.settle(gaps[d])
	}
}

// complete reports whether no further source needs to be asked. An address alone
// does not suffice: of a device that is no PCI function it may be its parent's.
func (d *ClaimDevice) complete() bool {
	return d.Attributes.DeviceID != "" && (d.Attributes.ResourceName != "" || d.Extended != "")
}

// merge takes over what earlier sources did not say.
func (d *ClaimDevice) merge(got *Attributes) {
	a, news := &d.Attributes, false
	for _, f := range []struct{ into, from *string }{
		{&a.DeviceID, &got.DeviceID}, {&a.ResourceName, &got.ResourceName}, {&a.PCIBusID, &got.PCIBusID},
	} {
		if *f.into == "" && *f.from != "" {
			*f.into, news = *f.from, true
		}
	}
	if news {
		a.Source = strings.TrimPrefix(a.Source+" and "+got.Source, " and ")
	}
	if len(d.Requests) == 0 {
		d.Requests = got.Requests
	}
}

// settle gives a claim's device its ID and resource. The resource that the
// container asked for goes before the one that the driver names.
func (d *Device) settle(gaps []error) {
	c := d.Claim
	if d.Resource = c.Extended; d.Resource == "" {
		d.Resource = c.Attributes.ResourceName
	}
	if d.ID = c.Attributes.DeviceID; d.ID == "" {
		d.ID = c.Attributes.PCIBusID
	}
	if d.ID == "" || d.Resource == "" {
		c.Gap = gap(d, gaps)
	}
}

// gap says what of a claim's device no source knows.
func gap(d *Device, causes []error) error {
	var missing []string
	if d.ID == "" {
		missing = append(missing, AttributeDeviceID+" nor "+AttributePCIBusID)
	}
	if d.Resource == "" {
		missing = append(missing, AttributeResourceName)
	}
	err := fmt.Errorf("no %s is known of it", strings.Join(missing, ", nor "))
	if len(causes) > 0 {
		err = fmt.Errorf("%w: %w", err, errors.Join(causes...))
	}
	return err
}
