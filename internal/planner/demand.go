package planner

import "github.com/manifold-cni/manifold/netattach"

// Demand is a network that needs a device.
type Demand struct {
	Network   string // namespace/name of the definition, with @interface if one is requested
	Resource  string // empty if the selection names a device and the definition no resource
	DeviceID  string // the device that the selection pins; empty for any
	Container string // the container that the selection names; empty for any
	Claim     string // the resource claim that the selection names; empty for none
	Request   string // the request of that claim; empty for any
}

// Demands returns which devices the networks of the selection will ask for, in order,
// including the default network. defs are the definitions that exist.
func (s *Selection) Demands(defs map[Ref]*netattach.Definition) []Demand {
	var out []Demand
	for _, r := range s.requests {
		def := defs[Ref{r.Namespace, r.Name}]
		if def == nil || def.ResourceName() == "" && !r.names() {
			continue
		}
		out = append(out, Demand{
			Network: r.String(), Resource: def.ResourceName(), DeviceID: r.DeviceID, Container: r.Container, Claim: r.Claim, Request: r.Request,
		})
	}
	return out
}
