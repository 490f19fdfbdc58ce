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
)

// Evict moves the network device of a VF from the sandbox to the host, under the name
// that it had there before, where the sandbox's pod has changed it such that the
// delegate's DEL would not find it, could not move it, or would move an interface of
// the pod's own in its stead. A delegate knows the interface by its name, which a pod
// with NET_ADMIN can change; the VF is known by its PCI function, which it cannot.
// Nothing else in the sandbox is touched.
//
// host is the node's. alias is the one under which the delegate keeps the name on the host, empty where it
// keeps none; movedIn says whether the delegate had moved the VF's network device in,
// and is asked only where that is not in the sandbox. Evict returns why the delegate
// must not be given the sandbox, empty where it may.
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
	case len(own) > 1: // it is not told which of them the delegate moved in
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

// standingOn returns the links of a PCI function, be it by way of a virtio device. A
// child of an IPoIB device is none: its delegate made it, while the device itself stays
// on the host.
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
		for _, l := range links { // of an older kernel
			if l.Attrs().ParentDev == "" && host.OfParent(busInfo(l.Attrs().Name)) == address {
				own = append(own, l)
			}
		}
		return nil
	})
	return own, err
}

func isCalled(a *netlink.LinkAttrs, name string) bool {
	return a.Name == name || slices.Contains(a.AltNames, name)
}

// changed says what the pod has changed of the VF's interface that its delegate's DEL
// depends on, empty for nothing. Of an alternative name it depends on the host whether
// the kernel moves the interface.
func changed(now *netlink.LinkAttrs, ifName, alias string, before sriov.NetDev) string {
	switch {
	case now.Name != ifName:
		return fmt.Sprintf("the interface %s is called %s by now", ifName, now.Name)
	case alias != "" && now.Alias != alias:
		return fmt.Sprintf("the interface %s has the alias %q, not %q", ifName, now.Alias, alias)
	}
	if added := foreignNames(now, before); len(added) > 0 {
		return fmt.Sprintf("the interface %s has the alternative name %s, which its network device did not have on the host", ifName, added[0])
	}
	return ""
}

// foreignNames are the alternative names that the network device did not have on the
// host, where it is known which it had.
func foreignNames(now *netlink.LinkAttrs, before sriov.NetDev) (added []string) {
	for _, name := range now.AltNames {
		if before.Settings != nil && !slices.Contains(before.Settings.AltNames, name) {
			added = append(added, name)
		}
	}
	return added
}

// moveOut moves a link to the network namespace of the caller and gives it its name of
// before in one request: the kernel heeds neither the name that the link has in the
// sandbox nor what else is called so there.
func (s *Sandbox) moveOut(now *netlink.LinkAttrs, before sriov.NetDev) error {
	return ns.WithNetNSPath(s.path, func(host ns.NetNS) error {
		link := &netlink.Device{LinkAttrs: *now}
		for _, name := range foreignNames(now, before) { // one that the host has keeps the link here
			if err := netlink.LinkDelAltName(link, name); err != nil {
				return fmt.Errorf("drop alternative name %s: %w", name, err)
			}
		}
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(now.Index)
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(host.Fd()))))
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(before.Name)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}
