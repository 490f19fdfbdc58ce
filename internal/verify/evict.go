package verify

import (
	"fmt"
	"slices"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// Evict moves the netdev of a VF from the sandbox to the host, under its former name
// there, if the pod has changed the netdev such that the delegate's DEL would not find
// it, could not move it, or would move an interface of the pod instead. A delegate
// knows the interface by name, which a pod with NET_ADMIN can change; Evict knows the
// VF by its PCI function, which no pod can. Evict touches nothing else in the sandbox.
//
// host is the node's. alias is the alias in which the delegate keeps the name on the
// host, empty when it keeps none. movedIn reports whether the delegate had moved the
// VF's netdev into the sandbox; it is only called when the netdev is not there. Evict
// returns why the delegate must not be given the sandbox, empty when it may.
func (s *Sandbox) Evict(host sriov.FS, a *plan.Attachment, before *sriov.Snapshot, alias string, movedIn func() bool) (why string, err error) {
	d := a.Device
	if s.links == nil || d == nil || d.Userspace || d.PCIAddress == "" || before == nil || len(before.NetDevs) != 1 {
		return "", nil
	}
	links, err := s.links.Links()
	if err != nil {
		return "", sandboxError(err)
	}
	own, err := s.standingOn(host, d.PCIAddress, links)
	switch {
	case err != nil:
		return "", sandboxError(err)
	case len(own) > 1: // unknown which of them the delegate moved in
		return "", nil
	case len(own) == 1:
		if why = changed(own[0].Attrs(), a.IfName, alias, before.NetDevs[0]); why == "" {
			return "", nil
		}
		if err := s.moveOut(own[0].Attrs(), before.NetDevs[0]); err != nil {
			return "", cnierr.New("release device", cnierr.TeardownIncomplete, "%s; it cannot be moved to the host: %w", why, err).
				WithFix("see whether another network device of the host has the name %s", before.NetDevs[0].Name)
		}
		return why, nil
	case slices.ContainsFunc(links, func(l netlink.Link) bool { return isCalled(l.Attrs(), a.IfName) }) && movedIn():
		return "the interface " + a.IfName + " is not the VF's network device, which is not in the sandbox", nil
	}
	return "", nil
}

// standingOn returns the links of a PCI function, directly or through a virtio device.
// A child of an IPoIB device is not one of them: its delegate created it, and the
// device stays on the host.
func (s *Sandbox) standingOn(host sriov.FS, address string, links []netlink.Link) (own []netlink.Link, err error) {
	links = slices.DeleteFunc(slices.Clone(links), isChild)
	for _, l := range links {
		if host.OfParent(l.Attrs().ParentDev) == address {
			own = append(own, l)
		}
	}
	if len(own) > 0 {
		return own, nil
	}
	err = ns.WithNetNSPath(s.path, func(ns.NetNS) error {
		for _, l := range links { // on an older kernel
			if l.Attrs().ParentDev == "" && host.OfParent(busInfo(l.Attrs().Name)) == address {
				own = append(own, l)
			}
		}
		return nil
	})
	return own, err
}

// isCalled reports whether name is the link's name or one of its alternative names.
func isCalled(a *netlink.LinkAttrs, name string) bool {
	return a.Name == name || slices.Contains(a.AltNames, name)
}

// changed says what the pod has changed on the VF's interface that its delegate's DEL
// depends on, empty for nothing. Whether an alternative name keeps the kernel from
// moving the interface depends on the names on the host.
func changed(now *netlink.LinkAttrs, ifName, alias string, before sriov.NetDev) string {
	switch {
	case now.Name != ifName:
		return fmt.Sprintf("the interface %s is now named %s", ifName, now.Name)
	case alias != "" && now.Alias != alias:
		return fmt.Sprintf("the interface %s has the alias %q, not %q", ifName, now.Alias, alias)
	}
	if added := foreignNames(now, before); len(added) > 0 {
		return fmt.Sprintf("the interface %s has the alternative name %s, which its network device did not have on the host", ifName, added[0])
	}
	return ""
}

// foreignNames returns the alternative names that the netdev did not have on the host,
// none when those are not known.
func foreignNames(now *netlink.LinkAttrs, before sriov.NetDev) (added []string) {
	for _, name := range now.AltNames {
		if before.Settings != nil && !slices.Contains(before.Settings.AltNames, name) {
			added = append(added, name)
		}
	}
	return added
}

// moveOut moves a link to the caller's network namespace and renames it to its former
// name in one request. That way neither the link's name in the sandbox nor the names of
// other links there matter.
func (s *Sandbox) moveOut(now *netlink.LinkAttrs, before sriov.NetDev) error {
	return ns.WithNetNSPath(s.path, func(host ns.NetNS) error {
		link := &netlink.Device{LinkAttrs: *now}
		for _, name := range foreignNames(now, before) { // one that is taken on the host would keep the link here
			if err := netlink.LinkDelAltName(link, name); err != nil {
				return fmt.Errorf("drop alternative name %s: %w", name, err)
			}
		}
		_, err := rtnl.Execute(rtnl.Changed(now.Index,
			nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(host.Fd()))), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(before.Name))))
		return err
	})
}
