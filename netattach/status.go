package netattach

import (
	"bytes"
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// Status is one entry of network-status (specification 5.3): the outcome of an
// attachment.
type Status struct {
	Name      string    `json:"name"`                // namespace/name of the definition, or the default network's name
	Interface string    `json:"interface,omitempty"` // in the pod
	IPs       []string  `json:"ips,omitempty"`       // without prefix length
	MAC       string    `json:"mac,omitempty"`
	MTU       int       `json:"mtu,omitempty"`
	Default   bool      `json:"default,omitempty"` // the cluster default network
	DNS       types.DNS `json:"dns"`
	// DeviceInfo is a device-info object, see [DeviceInfo].
	DeviceInfo json.RawMessage `json:"device-info,omitempty"`
	// DefaultRoute lists the gateways of the attachment that owns the pod's
	// default route.
	DefaultRoute []string `json:"default-route,omitempty"`
}

// StatusOptions is what is known about an attachment besides its result.
type StatusOptions struct {
	Name       string
	IfName     string
	Default    bool
	Gateway    []string
	DeviceInfo json.RawMessage
	MTU        int    // as found; used if the result has none
	MAC        string // as found; used if the result has none
}

// NewStatus makes an entry from a delegate's result as JSON, in any CNI version from
// 0.1.0 to 1.1.0. An empty result gives a minimal entry.
func NewStatus(result []byte, o StatusOptions) (Status, error) {
	s := Status{
		Name: o.Name, Interface: o.IfName, Default: o.Default, DefaultRoute: o.Gateway, DeviceInfo: o.DeviceInfo, MTU: o.MTU, MAC: o.MAC,
	}
	if t := bytes.TrimSpace(result); len(t) == 0 || bytes.Equal(t, []byte("null")) {
		return s, nil
	}
	res, err := create.CreateFromBytes(result)
	if err != nil {
		return Status{}, &Error{Entry: o.Name, Text: "the result is not a CNI result", Err: err}
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return Status{}, &Error{Entry: o.Name, Text: "the result cannot be converted", Err: err}
	}
	s.DNS = r.DNS
	own := firstSandbox(r)
	if own >= 0 {
		iface := r.Interfaces[own]
		s.Interface = iface.Name
		if iface.Mac != "" {
			s.MAC = iface.Mac
		}
		if iface.Mtu != 0 {
			s.MTU = iface.Mtu
		}
	}
	s.IPs = addressesOf(r, own)
	return s, nil
}

// firstSandbox returns the index of the first interface with a sandbox (specification
// 5.1), -1 when there is none.
func firstSandbox(r *types100.Result) int {
	for i, iface := range r.Interfaces {
		if iface != nil && iface.Sandbox != "" {
			return i
		}
	}
	return -1
}

// addressesOf returns the addresses of interface own. Without such an interface it
// returns the first address that names no interface (specification 5.3). Results older
// than 0.3.0 have no interfaces: all their addresses are the attachment's.
func addressesOf(r *types100.Result, own int) []string {
	var out []string
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		switch {
		case own >= 0 && ip.Interface != nil && *ip.Interface == own:
			out = append(out, ip.Address.IP.String())
		case own < 0 && ip.Interface == nil:
			out = append(out, ip.Address.IP.String())
			if len(r.Interfaces) > 0 {
				return out
			}
		}
	}
	return out
}

// MarshalStatuses returns the value of the network-status annotation.
func MarshalStatuses(all []Status) (string, error) {
	b, err := json.MarshalIndent(all, "", "    ")
	if err != nil {
		return "", &Error{Text: "network-status cannot be encoded", Err: err}
	}
	return string(b), nil
}
