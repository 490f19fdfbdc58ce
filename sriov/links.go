package sriov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoLink is wrapped by the errors of [Links] about a network device that the network
// namespace does not have, or no longer.
var ErrNoLink = errors.New("no such network device in this network namespace")

// Links is what this package needs from the kernel's network devices besides sysfs.
// [Kernel] is the real implementation.
type Links interface {
	// Link returns a network device. The error for an unknown name wraps [ErrNoLink].
	Link(name string) (*Link, error)
	// SetVF sets one property of the VF at index to its value in to. pf is the network
	// device of the VF's PF. An unknown VLANProto or LinkState gives
	// [io/fs.ErrInvalid]; an empty one means 802.1q or auto.
	SetVF(pf string, index int, p Property, to VFState) error
	// SetNetDev gives the named network device the name, alias, MTU and MAC of to, and
	// its settings unless they are nil. On an InfiniBand device it sets only the GUID
	// of the MAC.
	SetNetDev(name string, to NetDev) error
	// Events returns a channel that receives a value after network devices or drivers
	// of the node changed; changes in quick succession are merged into one. The channel
	// is closed when ctx ends or events can no longer be received.
	Events(ctx context.Context) (<-chan struct{}, error)
}

// Link is a network device together with what it keeps for the VFs of its function.
type Link struct {
	NetDev
	VFs map[int]VFState // by index; nil unless this is the uplink of a PF that has VFs
}

// NetDev is a network device in a network namespace.
type NetDev struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	MAC   string `json:"mac,omitempty"` // 20 bytes for an InfiniBand device, see [SameMAC]
	MTU   int    `json:"mtu,omitempty"`
	Alias string `json:"alias,omitempty"` // the plugin host-device stores the name on the host here
	// Settings are nil if they were not recorded, as in snapshots of older versions.
	Settings *Settings `json:"settings,omitempty"`
}

// VFState is what a PF keeps for one of its VFs and forces on the VF's user.
type VFState struct {
	MAC       string `json:"mac,omitempty"` // all zeros if the VF may choose; empty for an InfiniBand VF, which has none
	VLAN      int    `json:"vlan"`          // 0 for none
	VLANQoS   int    `json:"vlanQoS"`
	VLANProto string `json:"vlanProto,omitempty"` // 802.1q or 802.1ad
	SpoofChk  bool   `json:"spoofchk"`
	Trust     bool   `json:"trust"`
	LinkState string `json:"linkState"` // auto, enable or disable
	MinTxRate int    `json:"minTxRate"` // Mbit/s, 0 for no limit
	MaxTxRate int    `json:"maxTxRate"`
	// NodeGUID and PortGUID are the GUIDs that an InfiniBand VF was given: all zeros if
	// it was given none and has its own, all ones if it is to have none, and empty if
	// they are not reported, as by a kernel before 5.5.
	NodeGUID string `json:"nodeGUID,omitempty"`
	PortGUID string `json:"portGUID,omitempty"`
}

// Property is a part of [VFState] that is set on its own: a driver refuses properties
// that it does not support, which must not keep the others from being set.
type Property string

// The properties, in the order in which [Host.Reset] sets them.
const (
	PropertyVLAN      Property = "VLAN" // with QoS and protocol
	PropertySpoofChk  Property = "spoof check"
	PropertyTrust     Property = "trust"
	PropertyLinkState Property = "link state"
	PropertyRate      Property = "rate" // minimum and maximum
	PropertyNodeGUID  Property = "node GUID"
	PropertyPortGUID  Property = "port GUID"
	PropertyMAC       Property = "MAC"
)

// linkStates are the names of the kernel's IFLA_VF_LINK_STATE values, in order.
var linkStates = []string{"auto", "enable", "disable"}

// vlanProtos are the names of the protocols that a VF's VLAN can have.
var vlanProtos = []string{"802.1q", "802.1ad"}

// word returns the index of a property's value among its allowed values. An empty value
// means the first.
func word(p Property, of []string, is string) (int, error) {
	i := slices.Index(of, cmp.Or(is, of[0]))
	if i < 0 {
		return 0, fmt.Errorf("%s %s: want %s: %w", p, quote(is), strings.Join(of, " or "), fs.ErrInvalid)
	}
	return i, nil
}

// Kernel is the running kernel's network devices, in the network namespace of the
// calling thread. Programs that use several network namespaces must lock the thread.
type Kernel struct{}

// Link implements [Links].
func (Kernel) Link(name string) (*Link, error) {
	link, body, err := firstThatFits(name, alone, listed)
	if err != nil {
		return nil, err
	}
	out := &Link{}
	if out.NetDev, err = netDevOf(link, body); err != nil {
		return nil, err
	}
	programs, err := tcxOf(out.Index)
	if err != nil {
		return nil, fmt.Errorf("network device %s: %w", name, err)
	}
	for _, p := range programs {
		out.Settings.TCX = append(out.Settings.TCX, p.id)
	}
	if out.VFs, err = decodeVFs(body); err != nil {
		return nil, fmt.Errorf("VFs of network device %s: %w", name, err)
	}
	return out, nil
}

// SetVF sets one property of a VF, see [Links].
func (h Host) SetVF(pf string, index int, p Property, to VFState) error {
	return h.links().SetVF(pf, index, p, to)
}

// netDevOf converts a network device; body is the message from which link was decoded.
func netDevOf(link netlink.Link, body []byte) (NetDev, error) {
	a := link.Attrs()
	settings, err := settingsOf(a, body)
	if err != nil {
		return NetDev{}, fmt.Errorf("network device %s: %w", a.Name, err)
	}
	return NetDev{Name: a.Name, Index: a.Index, MAC: a.HardwareAddr.String(), MTU: a.MTU, Alias: a.Alias, Settings: settings}, nil
}

// OfLink is [FS.OfNetDev] for any name of the network device, including alternative
// names, which sysfs does not show. The error wraps [ErrNoLink] if the network
// namespace has no device of that name.
func (h Host) OfLink(name string) (string, error) {
	addr, err := h.OfNetDev(name)
	if err == nil || errors.Is(err, ErrNotPCI) {
		return addr, err
	}
	link, err := h.links().Link(name)
	if err != nil {
		return "", fmt.Errorf("sriov: %w", err)
	}
	return h.OfNetDev(link.Name)
}

// VFWritten is [FS.VFWritten] for any name of the VF's network device, including
// alternative names, which sysfs does not show.
func (h Host) VFWritten(text string) (*Function, error) {
	f, err := h.FS.VFWritten(text)
	if f != nil || err != nil || strings.ContainsAny(text, "/:") {
		return f, err
	}
	link, err := h.links().Link(text)
	if errors.Is(err, ErrNoLink) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sriov: %w", err)
	}
	return h.FS.VFWritten(link.Name)
}

// SetVF implements [Links].
func (Kernel) SetVF(pf string, index int, p Property, to VFState) error {
	link, _, err := ask(pf, 0)
	if err != nil {
		return err
	}
	switch p {
	case PropertyVLAN:
		proto, err := word(p, vlanProtos, to.VLANProto)
		if err != nil {
			return err
		}
		return netlink.LinkSetVfVlanQosProto(link, index, to.VLAN, to.VLANQoS, []int{unix.ETH_P_8021Q, unix.ETH_P_8021AD}[proto])
	case PropertySpoofChk:
		return netlink.LinkSetVfSpoofchk(link, index, to.SpoofChk)
	case PropertyTrust:
		return netlink.LinkSetVfTrust(link, index, to.Trust)
	case PropertyLinkState:
		state, err := word(p, linkStates, to.LinkState)
		if err != nil {
			return err
		}
		return netlink.LinkSetVfState(link, index, uint32(state))
	case PropertyRate:
		return netlink.LinkSetVfRate(link, index, to.MinTxRate, to.MaxTxRate)
	}
	return setVFAddress(link, index, p, to)
}

// setVFAddress implements SetVF for the properties that are addresses.
func setVFAddress(link netlink.Link, index int, p Property, to VFState) error {
	for _, a := range []struct {
		Property
		value string
		set   func(netlink.Link, int, net.HardwareAddr) error
	}{
		{PropertyNodeGUID, to.NodeGUID, netlink.LinkSetVfNodeGUID},
		{PropertyPortGUID, to.PortGUID, netlink.LinkSetVfPortGUID},
		{PropertyMAC, to.MAC, netlink.LinkSetVfHardwareAddr},
	} {
		if a.Property == p {
			value, err := net.ParseMAC(a.value) // parses GUIDs as well
			if err != nil {
				return err
			}
			return a.set(link, index, value)
		}
	}
	return fmt.Errorf("a VF has no property %q", string(p))
}

// setMAC sets the MAC of a link that is down. A VF may not choose its own MAC if the PF
// chose one. The PF's MAC is then in force, but the VF's driver may not adopt it before
// the link is set up and down.
func setMAC(link netlink.Link, mac net.HardwareAddr) error {
	err := netlink.LinkSetHardwareAddr(link, mac)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPERM) {
		return errors.Join(netlink.LinkSetUp(link), netlink.LinkSetDown(link))
	}
	return err
}

// SetNetDev implements [Links]. It takes the device down meanwhile, because the kernel
// does not rename a device that is up.
func (Kernel) SetNetDev(name string, to NetDev) error {
	link, body, err := ask(name, 0)
	if err != nil {
		return err
	}
	is, err := netDevOf(link, body)
	if err != nil {
		return err
	}
	up := link.Attrs().Flags&net.FlagUp != 0
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("set %s down: %w", name, err)
	}
	var problems []error
	if to.Settings != nil { // first: the new name may be one of the device's alternative names
		problems = append(problems, setSettings(link, is.Settings, to.Settings))
	}
	if to.Name != is.Name {
		problems = append(problems, netlink.LinkSetName(link, to.Name))
	}
	if to.Alias != is.Alias {
		problems = append(problems, netlink.LinkSetAlias(link, to.Alias))
	}
	if to.MTU != is.MTU {
		problems = append(problems, netlink.LinkSetMTU(link, to.MTU))
	}
	if mac := toSet(is.MAC, to.MAC); mac != nil {
		problems = append(problems, setMAC(link, mac))
	}
	if up {
		problems = append(problems, netlink.LinkSetUp(link))
	}
	return errors.Join(problems...)
}

// Events implements [Links]. It listens on rtnetlink for the namespace's links, and for
// uevents about bound drivers and new VFs. The content of a message does not matter,
// and a lost one does no harm: receivers look at the current state.
func (Kernel) Events(ctx context.Context) (<-chan struct{}, error) {
	links, err := listen(unix.NETLINK_ROUTE, unix.RTMGRP_LINK)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of network devices: %w", err)
	}
	drivers, err := listen(unix.NETLINK_KOBJECT_UEVENT, 1)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for changes of drivers: %w", err), links.Close())
	}
	changed := make(chan struct{}, 1)
	stop := func() { _ = errors.Join(links.Close(), drivers.Close()) } // this ends the reads
	context.AfterFunc(ctx, stop)
	var all sync.WaitGroup
	for _, socket := range []*os.File{links, drivers} {
		all.Go(func() {
			defer stop() // one source alone is not enough
			hear(socket, changed)
		})
	}
	go func() {
		all.Wait()
		close(changed)
	}()
	return changed, nil
}

// listen opens a netlink socket that is subscribed to a protocol's groups.
func listen(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// hear signals every message on changed, until the socket is closed.
func hear(socket *os.File, changed chan<- struct{}) {
	buf := make([]byte, 1<<12) // longer messages are truncated
	for {
		_, err := socket.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: lost messages are changes, too
			return
		}
		select {
		case changed <- struct{}{}:
		default: // a value is already pending
		}
	}
}
