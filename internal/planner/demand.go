package planner

import "github.com/manifold-cni/manifold/netattach"

// Demand is a network that stands on a device.
type Demand struct {
	Network   string // namespace/name of the definition, with @interface when one is asked for
	Resource  string // empty where the selection names a device, and the definition names no resource
	DeviceID  string // the one that the selection pins; empty for any
	Container string // the one that the selection names; empty for any
	Claim     string // the resource claim that the selection names; empty for none
	Request   string // the request of that claim; empty for any
}

// Demands returns which devices the networks of the selection will ask for, over
// default and secondary networks, in order; defs are those that exist.
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
