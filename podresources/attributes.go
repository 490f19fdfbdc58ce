package podresources

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Attributes of a claim's device that matter to CNI plugins.
const (
	AttributeDeviceID     = "k8s.cni.cncf.io/deviceID"        // the ID that CNI plugins get
	AttributeResourceName = "k8s.cni.cncf.io/resourceName"    // the resource that networks refer to
	AttributePCIBusID     = "resource.kubernetes.io/pciBusID" // the address of a PCI device
)

// Attributes are what a source knows about one claim's device. Unknown values are
// empty.
type Attributes struct {
	DeviceID     string
	ResourceName string
	PCIBusID     string
	// Requests are the claim's requests that the device serves, as in [ClaimDevice].
	Requests []string
	// Source names the source for people; all sources, if several contributed.
	Source string
	// Err tells why the source does not know the device; nil if it does. An error that
	// wraps [ErrUnavailable] is temporary.
	Err error
}

// set stores one attribute, if it is one of those that matter here.
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

// NewAttributes picks the known attributes from those that a driver publishes for a
// device, keyed by their full names.
func NewAttributes(published map[string]string) Attributes {
	var a Attributes
	for name, value := range published {
		a.set(name, value)
	}
	return a
}

// AttributeSource knows attributes of claims' devices; [Metadata] is one.
type AttributeSource interface {
	// Attributes returns what the source knows of each device, in the order of devices.
	Attributes(ctx context.Context, devices []*ClaimDevice) []Attributes
}

// Identify asks the sources, one after another, for the attributes of those devices
// that belong to claims, and sets the ID and resource of each in place. It asks a later
// source only about devices that still lack something. [Reader] does this by itself.
func Identify(ctx context.Context, devices []Device, sources []AttributeSource) {
	identify(ctx, devices, sources, func(*Device) {})
}

// identify implements Identify. It calls learned for a device whose requests a source
// revealed, before it settles the device's resource.
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

// complete reports whether no further source needs to be asked. An address alone does
// not suffice: if the device is not a PCI function, the address may be its parent's.
func (d *ClaimDevice) complete() bool {
	return d.Attributes.DeviceID != "" && (d.Attributes.ResourceName != "" || d.Extended != "")
}

// merge adds the values that earlier sources did not have.
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

// settle sets the ID and resource of a claim's device. The resource that the container
// asked for takes precedence over the one that the driver names.
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

// gap tells what no source knows about a claim's device.
func gap(d *Device, causes []error) error {
	var missing []string
	if d.ID == "" {
		missing = append(missing, AttributeDeviceID+" or "+AttributePCIBusID)
	}
	if d.Resource == "" {
		missing = append(missing, AttributeResourceName)
	}
	err := fmt.Errorf("no source knows its %s", strings.Join(missing, ", nor its "))
	if len(causes) > 0 {
		err = fmt.Errorf("%w: %w", err, errors.Join(causes...))
	}
	return err
}
