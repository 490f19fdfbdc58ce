package attach

import (
	"errors"
	"net"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// setDefaultRoutes makes the sandbox's default routes those that the plan asks
// for (multi-network specification 4.1.2.1.10): the default routes of every
// attachment that must not have one are removed, then the gateways of the one
// that has them are added, the first with the lowest metric.
func setDefaultRoutes(netns string, attachments []plan.Attachment) error {
	asked := false
	for _, a := range attachments {
		asked = asked || a.DropDefaultRoute || a.DefaultRoute != nil
	}
	if !asked {
		return nil
	}
	err := ns.WithNetNSPath(netns, func(ns.NetNS) error {
		for _, a := range attachments {
			if a.DropDefaultRoute || a.DefaultRoute != nil {
				if err := removeDefaultRoutes(a.IfName); err != nil {
					return err
				}
			}
		}
		for _, a := range attachments {
			if a.DefaultRoute == nil {
				continue
			}
			if err := addDefaultRoutes(a.IfName, *a.DefaultRoute); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return cnierr.New("set default route", cnierr.IO, "%w", err)
	}
	return nil
}

// removeDefaultRoutes removes the interface's default routes of both families.
// An interface that does not exist has none.
func removeDefaultRoutes(ifName string) error {
	link, err := netlinksafe.LinkByName(ifName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlinksafe.RouteList(link, family)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if !isDefault(r.Dst) {
				continue
			}
			if err := netlink.RouteDel(&r); err != nil {
				return err
			}
		}
	}
	return nil
}

// isDefault reports whether a route's destination is everything: netlink gives
// nil or the zero prefix, depending on its release.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

// addDefaultRoutes adds one default route per gateway, in order of preference
// within each family.
func addDefaultRoutes(ifName string, gateways []string) error {
	if len(gateways) == 0 {
		return nil
	}
	link, err := netlinksafe.LinkByName(ifName)
	if err != nil {
		return err
	}
	metric := map[bool]int{}
	for _, g := range gateways {
		gw := net.ParseIP(g)
		v4 := gw.To4() != nil
		dst := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		if v4 {
			dst = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: gw, Priority: metric[v4]}
		if err := netlink.RouteAdd(r); err != nil {
			return err
		}
		metric[v4] += 100
	}
	return nil
}
