package sriov

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// Settings are the properties of a network device that anyone with administrative
// rights over it can change, such as a pod with NET_ADMIN. They travel with the device
// from one network namespace to the next, and no delegate looks at them.
type Settings struct {
	AltNames []string `json:"altNames,omitempty"` // sorted
	Flags    uint32   `json:"flags,omitempty"`    // IFF_*, only those that can be set
	TxQueue  int      `json:"txQueue,omitempty"`  // length in packets
	Group    uint32   `json:"group,omitempty"`
	XDP      []uint32 `json:"xdp,omitempty"` // IDs of the programs that see incoming packets first
	TCX      []uint32 `json:"tcx,omitempty"` // IDs of the programs that see packets before traffic control does, incoming ones first
	// Broadcast is the hardware address to which broadcasts are sent, among them the
	// questions of ARP: whoever changes it receives them. It is empty if it was not
	// recorded, and for InfiniBand, whose driver sets it.
	Broadcast string `json:"broadcast,omitempty"`
	LinkMode  uint8  `json:"linkMode,omitempty"` // IF_LINK_MODE_*, 0 for the default
	// Limits are the longest packets that segmentation and receive offload make, by
	// their names in 'ip link', as far as they were recorded.
	Limits map[string]uint32 `json:"limits,omitempty"`
}

// limits are the attributes of [Settings].Limits. The kernel applies them in this
// order, in which a limit for IPv4 comes after the limit for all that may change it.
var limits = []struct {
	kind int
	name string
}{
	{unix.IFLA_GSO_MAX_SIZE, "gso_max_size"},
	{unix.IFLA_GSO_MAX_SEGS, "gso_max_segs"},
	{unix.IFLA_GRO_MAX_SIZE, "gro_max_size"},
	{unix.IFLA_GSO_IPV4_MAX_SIZE, "gso_ipv4_max_size"},
	{unix.IFLA_GRO_IPV4_MAX_SIZE, "gro_ipv4_max_size"},
}

// linkModes are the names of link modes in 'ip link'. A device in another mode than the
// default does not count as running when it has a carrier.
var linkModes = []string{"default", "dormant", "testing"}

// modeName returns the name of a link mode.
func modeName(mode uint8) string {
	if int(mode) < len(linkModes) {
		return linkModes[mode]
	}
	return fmt.Sprint(mode)
}

// linkFlags are the flags that can be set, with their names in 'ip link'. IFF_UP is not
// among them.
var linkFlags = []struct {
	bit  uint32
	name string
}{
	{unix.IFF_PROMISC, "PROMISC"},
	{unix.IFF_ALLMULTI, "ALLMULTI"},
	{unix.IFF_NOARP, "NOARP"},
	{unix.IFF_MULTICAST, "MULTICAST"},
	{unix.IFF_DYNAMIC, "DYNAMIC"},
	{unix.IFF_DEBUG, "DEBUG"},
}

// settable returns the mask of all linkFlags.
func settable() (mask uint32) {
	for _, f := range linkFlags {
		mask |= f.bit
	}
	return mask
}

// differences lists the settings of the network device name that are not as in s. It
// lists nothing if one side was not recorded.
func (s *Settings) differences(name string, now *Settings) (out []Difference) {
	if s == nil || now == nil {
		return nil
	}
	expect := func(field, want, found string) {
		if want != found {
			out = append(out, Difference{field + " of " + name, text(want), text(found)})
		}
	}
	expect("alternative names", strings.Join(s.AltNames, " "), strings.Join(now.AltNames, " "))
	for _, f := range linkFlags {
		expect("flag "+f.name, text(s.Flags&f.bit != 0), text(now.Flags&f.bit != 0))
	}
	expect("transmit queue", fmt.Sprint(s.TxQueue), fmt.Sprint(now.TxQueue))
	expect("group", fmt.Sprint(s.Group), fmt.Sprint(now.Group))
	if s.Broadcast != "" && now.Broadcast != "" {
		expect("broadcast address", s.Broadcast, now.Broadcast)
	}
	expect("link mode", modeName(s.LinkMode), modeName(now.LinkMode))
	for _, l := range limits {
		was, recorded := s.Limits[l.name]
		if is, known := now.Limits[l.name]; recorded && known {
			expect(l.name, fmt.Sprint(was), fmt.Sprint(is))
		}
	}
	// A removed program is no difference: only its ID is known, and its owner may have
	// removed it. The AF_XDP plugin, for example, removes the program that its device
	// plugin attaches at each allocation.
	if slices.ContainsFunc(now.XDP, func(id uint32) bool { return !slices.Contains(s.XDP, id) }) {
		expect("XDP program", numbers(s.XDP), numbers(now.XDP))
	}
	if slices.ContainsFunc(now.TCX, func(id uint32) bool { return !slices.Contains(s.TCX, id) }) {
		expect("TCX program", numbers(s.TCX), numbers(now.TCX))
	}
	return out
}

func numbers(of []uint32) string { return strings.Trim(fmt.Sprint(of), "[]") }

// settingsOf returns the settings of a network device; body is the message about the
// device.
func settingsOf(a *netlink.LinkAttrs, body []byte) (*Settings, error) {
	programs, err := decodeXDP(body)
	if err != nil {
		return nil, err
	}
	s := &Settings{AltNames: slices.Sorted(slices.Values(a.AltNames)), Flags: a.RawFlags & settable(), TxQueue: a.TxQLen, Group: a.Group}
	for _, p := range programs {
		s.XDP = append(s.XDP, p.id)
	}
	return s, s.addTraffic(body)
}

// addTraffic adds the settings that the netlink library does not decode, or not all of.
func (s *Settings) addTraffic(body []byte) error {
	attrs, err := attributes(body[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		switch {
		case a.kind == unix.IFLA_BROADCAST && len(a.value) == ethernetLength:
			s.Broadcast = net.HardwareAddr(a.value).String()
		case a.kind == unix.IFLA_LINKMODE && len(a.value) == 1:
			s.LinkMode = a.value[0]
		case len(a.value) == 4:
			for _, l := range limits {
				if int(a.kind) != l.kind {
					continue
				}
				if s.Limits == nil {
					s.Limits = map[string]uint32{}
				}
				s.Limits[l.name] = binary.NativeEndian.Uint32(a.value)
			}
		}
	}
	return err
}

// ethernetLength is the length of an Ethernet address in bytes.
const ethernetLength = 6

// program is an XDP program of a network device.
type program struct {
	id   uint32
	mode int // the XDP flag that detaches it
}

// decodeXDP reads the XDP programs of a network device from the body of an RTM_NEWLINK
// message, in the order in which they see a packet. The netlink library knows only one
// program.
func decodeXDP(body []byte) (out []program, err error) {
	if len(body) < unix.SizeofIfInfomsg {
		return nil, fmt.Errorf("network device message is too short: %d bytes", len(body))
	}
	// IFLA_XDP_DRV_PROG_ID and the related attributes of the kernel's linux/if_link.h,
	// each with its XDP_FLAGS_DRV_MODE or related flag.
	modes := map[uint16]int{5: 1 << 2, 6: 1 << 1, 7: 1 << 3}
	attrs, err := attributes(body[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		if a.kind&^unix.NLA_F_NESTED != unix.IFLA_XDP {
			continue
		}
		var programs []attribute
		programs, err = attributes(a.value)
		for _, p := range programs {
			if mode := modes[p.kind]; mode != 0 && len(p.value) >= 4 {
				out = append(out, program{binary.NativeEndian.Uint32(p.value), mode})
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// setSettings changes the settings of a network device from is to to. It does not
// restore removed programs.
func setSettings(link netlink.Link, is, to *Settings) error {
	var problems []error
	for _, name := range is.AltNames {
		if !slices.Contains(to.AltNames, name) {
			problems = append(problems, netlink.LinkDelAltName(link, name))
		}
	}
	for _, name := range to.AltNames {
		if !slices.Contains(is.AltNames, name) {
			problems = append(problems, netlink.LinkAddAltName(link, name))
		}
	}
	if is.Flags != to.Flags {
		problems = append(problems, setFlags(link, to.Flags))
	}
	if is.TxQueue != to.TxQueue {
		problems = append(problems, netlink.LinkSetTxQLen(link, to.TxQueue))
	}
	if is.Group != to.Group {
		problems = append(problems, netlink.LinkSetGroup(link, int(to.Group)))
	}
	return errors.Join(append(problems, setTraffic(link, is, to), dropXDP(link, to.XDP), dropTCX(link.Attrs().Index, to.TCX))...)
}

// setTraffic sets broadcast address, link mode and limits, each only if it differs. All
// limits go in one request, since setting one may change another.
func setTraffic(link netlink.Link, is, to *Settings) error {
	var problems []error
	set := func(what string, attrs ...*nl.RtAttr) {
		if _, err := rtnl.Execute(rtnl.Changed(link.Attrs().Index, attrs...)); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", what, err))
		}
	}
	if mac, err := net.ParseMAC(to.Broadcast); err == nil && to.Broadcast != is.Broadcast {
		set("broadcast address", nl.NewRtAttr(unix.IFLA_BROADCAST, mac))
	}
	if to.LinkMode != is.LinkMode {
		set("link mode", nl.NewRtAttr(unix.IFLA_LINKMODE, []byte{to.LinkMode}))
	}
	var all []*nl.RtAttr
	differs := false
	for _, l := range limits {
		if value, recorded := to.Limits[l.name]; recorded {
			all = append(all, nl.NewRtAttr(l.kind, nl.Uint32Attr(value)))
			differs = differs || value != is.Limits[l.name]
		}
	}
	if differs {
		set("limits of offloads", all...)
	}
	return errors.Join(problems...)
}

// setFlags sets all linkFlags in one request; the netlink library needs one request for
// each.
func setFlags(link netlink.Link, flags uint32) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(link.Attrs().Index), flags, settable()
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	return nil
}

// dropXDP detaches the XDP programs that are not in keep.
func dropXDP(link netlink.Link, keep []uint32) error {
	_, body, err := ask(link.Attrs().Name, 0)
	if err != nil {
		return err
	}
	programs, err := decodeXDP(body)
	problems := []error{err}
	for _, p := range programs {
		if slices.Contains(keep, p.id) {
			continue
		}
		err := netlink.LinkSetXdpFdWithFlags(link, -1, p.mode)
		if errors.Is(err, unix.EBUSY) { // a BPF link attaches it
			err = detachXDPLinks(link.Attrs().Index, p.id)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("XDP program %d: %w", p.id, err))
		}
	}
	return errors.Join(problems...)
}
