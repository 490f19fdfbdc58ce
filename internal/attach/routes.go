package attach

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/plan"
)

// route sets the sandbox's default routes and updates the recorded results to match:
// the runtime, CHECK and DEL get what is really there.
func (r *run) route(outcomes []plan.Outcome) error {
	attachments := r.entry.Plan.Attachments
	if !slices.ContainsFunc(attachments, routed) {
		return nil
	}
	if err := setDefaultRoutes(r.inv.NetNS, attachments); err != nil {
		return err
	}
	killpoint.Here("routes set")
	for i := range attachments {
		result, err := withDefaultRoutes(outcomes[i].Result, &attachments[i])
		if err != nil {
			return err
		}
		outcomes[i].Result = result
		if err := r.record(journal.Step{Attachment: i, Phase: journal.Routed, Result: result}); err != nil {
			return err
		}
	}
	return nil
}

// routed reports whether the plan decides about the attachment's default route.
func routed(a plan.Attachment) bool { return a.DropDefaultRoute || a.DefaultRoute != nil }

// setDefaultRoutes gives the sandbox the default routes that the plan asks for
// (multi-network specification 4.1.2.1.10). It removes the default routes of every
// attachment that the plan decides about, then adds the gateways of the attachment that
// has default-route, the first with the lowest metric.
func setDefaultRoutes(netns string, attachments []plan.Attachment) error {
	err := ns.WithNetNSPath(netns, func(ns.NetNS) error {
		for _, a := range attachments {
			if !routed(a) {
				continue
			}
			if err := removeDefaultRoutes(a.IfName); err != nil {
				return routeError(&a, err)
			}
		}
		for _, a := range attachments {
			if a.DefaultRoute == nil {
				continue
			}
			if err := addDefaultRoutes(a.IfName, *a.DefaultRoute); err != nil {
				return routeError(&a, err).
					WithFix("in default-route of the pod's annotation, name a gateway in a subnet of the pod's addresses on this network")
			}
		}
		return nil
	})
	if typed := (*cnierr.Error)(nil); err == nil || errors.As(err, &typed) {
		return err
	}
	return cnierr.New("set default route", cnierr.IO, "%w", err)
}

// routeError is the error of setting an attachment's default routes.
func routeError(a *plan.Attachment, err error) *cnierr.Error {
	return cnierr.New("set default route", cnierr.IO, "%w", err).About(cnierr.Subject{Network: a.Name, Interface: a.IfName})
}

// removeDefaultRoutes removes the interface's default routes of both families and
// checks that they are gone, because the runtime is told so. An interface that does not
// exist has none.
func removeDefaultRoutes(ifName string) error {
	link, err := netlinksafe.LinkByName(ifName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := defaultRoutesOf(index, family)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if err := removeRoute(r, index); err != nil {
				return fmt.Errorf("remove %s: %w", r, err)
			}
		}
		left, err := defaultRoutesOf(index, family)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("interface %s still has the default route %s", ifName, left[0])
		}
	}
	return nil
}

// defaultRoutesOf returns the main table's default routes through an interface. It
// lists the routes of all interfaces: a route with several next hops, which the kernel
// makes of two IPv6 routes with the same metric, names interfaces only in its hops, and
// a list by interface omits it.
func defaultRoutesOf(index, family int) ([]netlink.Route, error) {
	routes, err := netlinksafe.RouteList(nil, family)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool {
		through := r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(h *netlink.NexthopInfo) bool { return h.LinkIndex == index })
		return !through || !isDefault(r.Dst)
	}), nil
}

// removeRoute removes a route through an interface. Its next hops through other
// interfaces stay.
func removeRoute(r netlink.Route, index int) error {
	if err := netlink.RouteDel(&r); err != nil {
		return err
	}
	r.MultiPath = slices.DeleteFunc(r.MultiPath, func(h *netlink.NexthopInfo) bool { return h.LinkIndex == index })
	if len(r.MultiPath) == 0 {
		return nil
	}
	// The kernel refuses the state flags that it reports for a route and its hops.
	r.Flags &= unix.RTNH_F_ONLINK
	for _, h := range r.MultiPath {
		h.Flags &= unix.RTNH_F_ONLINK
	}
	return netlink.RouteAdd(&r)
}

// isDefault reports whether a route's destination is everything. Depending on its
// release, netlink returns nil or the zero prefix for that.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

// addDefaultRoutes adds one default route per gateway, in order of preference within
// each family.
func addDefaultRoutes(ifName string, gateways []string) error {
	if len(gateways) == 0 {
		return nil
	}
	link, err := netlinksafe.LinkByName(ifName)
	if err != nil {
		return err
	}
	for _, g := range gatewaysOf(gateways) {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: g.dst, Gw: g.ip, Priority: g.metric}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("gateway %s: %w", g.ip, err)
		}
	}
	return nil
}

// gateway is one default route: its gateway, the zero prefix of the family, and a
// metric.
type gateway struct {
	ip     net.IP
	dst    *net.IPNet
	metric int
}

// metricStep is the difference between the metrics of successive gateways.
const metricStep = 100

// metric6 is the metric that the kernel gives an IPv6 route without one.
const metric6 = 1024

// gatewaysOf gives the gateways their metrics. The first of each family gets the
// lowest, the one that a route without a metric has.
func gatewaysOf(list []string) []gateway {
	var out []gateway
	metric := map[bool]int{false: metric6}
	for _, s := range list {
		ip := net.ParseIP(s)
		v4 := ip.To4() != nil
		dst := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		if v4 {
			dst = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		}
		out = append(out, gateway{ip: ip, dst: dst, metric: metric[v4]})
		metric[v4] += metricStep
	}
	return out
}
