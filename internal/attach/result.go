package attach

import (
	"encoding/json"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
)

// decodeResult decodes a result of any version. It returns the result as it is and
// converted to the newest version.
func decodeResult(raw json.RawMessage) (types.Result, *types100.Result, error) {
	res, err := create.CreateFromBytes(raw)
	if err != nil {
		return nil, nil, cnierr.New("read result", cnierr.DelegateFailed, "%w", err)
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, nil, cnierr.New("read result", cnierr.DelegateFailed, "%w", err)
	}
	return res, r, nil
}

// withDefaultRoutes returns the result of attachment a with the default routes that
// setDefaultRoutes set in place of those that the delegate reported. A result whose
// version cannot express them (one without addresses before 0.3.0) stays unchanged.
func withDefaultRoutes(raw json.RawMessage, a *plan.Attachment) (json.RawMessage, error) {
	res, r, err := decodeResult(raw)
	if err != nil {
		return nil, err
	}
	kept := slices.DeleteFunc(slices.Clone(r.Routes), func(t *types.Route) bool {
		// A route in another table is policy routing, which stays as it is.
		return t == nil || isDefault(&t.Dst) && (t.Table == nil || *t.Table == unix.RT_TABLE_MAIN)
	})
	changed := len(kept) != len(r.Routes)
	if a.DefaultRoute != nil {
		for _, g := range gatewaysOf(*a.DefaultRoute) {
			changed = true
			kept = append(kept, &types.Route{Dst: *g.dst, GW: g.ip, Priority: g.metric})
		}
	}
	if !changed {
		return raw, nil
	}
	r.Routes = kept
	converted, err := r.GetAsVersion(res.Version())
	if err != nil {
		return raw, nil
	}
	raw, err = json.Marshal(converted)
	if err != nil {
		return nil, cnierr.New("encode result", cnierr.DelegateFailed, "%w", err)
	}
	return raw, nil
}

// inVersion converts a recorded result to the CNI version that the runtime asked for.
func inVersion(raw json.RawMessage, version string) (types.Result, error) {
	res, err := create.CreateFromBytes(raw)
	if err == nil {
		res, err = res.GetAsVersion(version)
	}
	if err != nil {
		return nil, cnierr.New("convert result to CNI "+version, cnierr.IncompatibleVersion, "%w", err)
	}
	return res, nil
}

// claimOf returns what a result claims about the attachment's own interface, and the
// names of all interfaces that it places in the sandbox.
func claimOf(raw json.RawMessage, ifName string) (verify.Claim, []string, error) {
	var c verify.Claim
	_, r, err := decodeResult(raw)
	if err != nil {
		return c, nil, err
	}
	var names []string
	own := -1
	for i, iface := range r.Interfaces {
		if iface == nil || iface.Sandbox == "" {
			continue
		}
		names = append(names, iface.Name)
		if iface.Name == ifName {
			own, c = i, verify.Claim{Interface: true, MAC: iface.Mac, MTU: iface.Mtu}
		}
	}
	if own < 0 && len(names) > 0 {
		c.Interface = true // it lists interfaces, so the planned one must exist
	}
	c.Addresses = addressesOf(r.IPs, own, len(names))
	return c, names, nil
}

// addressesOf returns the addresses of the interface at index own (negative for none),
// in a result with the given number of interfaces in the sandbox. An address need not
// name its interface, and before 0.3.0 cannot. It then belongs to the attachment's
// interface if no other can be meant.
func addressesOf(ips []*types100.IPConfig, own, interfaces int) (out []string) {
	alone := interfaces == 0 || own >= 0 && interfaces == 1
	for _, ip := range ips {
		if ip != nil && (ip.Interface == nil && alone || ip.Interface != nil && own >= 0 && *ip.Interface == own) {
			out = append(out, ip.Address.String())
		}
	}
	return out
}
