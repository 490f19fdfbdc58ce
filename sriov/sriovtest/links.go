package sriovtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov"
)

// Host returns the tree together with network devices that can be configured.
func (t *Tree) Host() sriov.Host { return sriov.Host{FS: t.FS(), Links: links{t}} }

// Refuse makes the PF's driver refuse with err to set the property p of the VF at addr.
// A nil err lets it be set again.
func (t *Tree) Refuse(addr string, p sriov.Property, err error) {
	addr = t.address(addr)
	t.kernel.mu.Lock()
	defer t.kernel.mu.Unlock()
	t.kernel.vf(addr).refused[p] = err
}

// Omit makes the PF leave the VF at addr out of its next answers, as drivers do while
// they reset it. A negative number means forever.
func (t *Tree) Omit(addr string, answers int) {
	addr = t.address(addr)
	t.kernel.mu.Lock()
	defer t.kernel.mu.Unlock()
	t.kernel.vf(addr).omitted = answers
}

// Tell makes the driver of the VF at addr tell its PF the MAC of the VF's network
// device. Once the PF itself was set to a MAC, the PF's driver refuses any other until
// the PF's is all zeros again. igbvf and igb behave so. A trusted VF may choose its MAC
// all the same.
func (t *Tree) Tell(addr string) {
	addr = t.address(addr)
	t.kernel.mu.Lock()
	defer t.kernel.mu.Unlock()
	t.kernel.vf(addr).tells = true
}

// AddAltName gives a network device an alternative name, which sysfs does not show.
func (t *Tree) AddAltName(netDev, name string) {
	t.kernel.mu.Lock()
	defer t.kernel.mu.Unlock()
	t.kernel.altNames[name] = netDev
}

// kernel is the state of the kernel and the PFs' drivers that sysfs does not show.
type kernel struct {
	mu        sync.Mutex
	vfs       map[string]*vfState       // by address
	altNames  map[string]string         // network device by alternative name
	settings  map[string]sriov.Settings // by name of the network device, without alternative names
	listeners map[chan struct{}]bool
}

// vfState is what a PF's driver keeps for a VF.
type vfState struct {
	sriov.VFState
	refused map[sriov.Property]error
	omitted int // how many of the next answers omit the VF
	tells   bool
	given   bool // the PF gave it its MAC
	guids   bool // it is an InfiniBand VF, which has GUIDs instead of a MAC
}

// vf returns the state of a VF. A new VF has no VLAN, no MAC of its own, and its spoof
// check on.
func (k *kernel) vf(addr string) *vfState {
	v := k.vfs[addr]
	if v == nil {
		v = &vfState{
			VFState: sriov.VFState{MAC: "00:00:00:00:00:00", VLANProto: "802.1q", SpoofChk: true, LinkState: "auto"},
			refused: map[sriov.Property]error{},
		}
		k.vfs[addr] = v
	}
	return v
}

// infinibandClass is the PCI class of InfiniBand controllers.
const infinibandClass = "020700"

// guidText is the length of a GUID in text form.
const guidText = len("00:00:00:00:00:00:00:00")

// infiniband reports whether address is that of an InfiniBand network device.
func infiniband(address string) bool {
	hw, err := net.ParseMAC(address)
	return err == nil && len(hw) == 20
}

// addInfiniBand sets the state of an InfiniBand VF that was never given a GUID.
func (k *kernel) addInfiniBand(addr string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	const none = "00:00:00:00:00:00:00:00"
	v := k.vf(addr)
	v.VFState, v.guids = sriov.VFState{LinkState: "auto", NodeGUID: none, PortGUID: none}, true
}

// refuses returns the error of the PF's driver for an attempt to set p. The driver of
// an InfiniBand PF supports only link state and GUIDs.
func (v *vfState) refuses(p sriov.Property) error {
	known := p == sriov.PropertyLinkState || p == sriov.PropertyNodeGUID || p == sriov.PropertyPortGUID
	if v.guids && !known {
		return unix.EOPNOTSUPP
	}
	return v.refused[p]
}

// forget drops the state of a VF that is gone.
func (k *kernel) forget(addr string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.vfs, addr)
}

// named returns the name in sysfs of a network device, given any of its names.
func (k *kernel) named(name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return cmp.Or(k.altNames[name], name)
}

// tell signals all listeners that something changed.
func (k *kernel) tell() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.listeners {
		select {
		case c <- struct{}{}:
		default: // a value is already pending
		}
	}
}

// settingsOf returns a network device's settings. A new device has the kernel's
// defaults.
func (k *kernel) settingsOf(netDev string) sriov.Settings {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, known := k.settings[netDev]
	if !known {
		s = sriov.Settings{Flags: unix.IFF_MULTICAST, TxQueue: 1000}
	}
	for alt, of := range k.altNames {
		if of == netDev {
			s.AltNames = append(s.AltNames, alt)
		}
	}
	slices.Sort(s.AltNames)
	return s
}

// set changes a network device's name and settings. It keeps the settings if to has
// none.
func (k *kernel) set(netDev string, to sriov.NetDev) {
	s := k.settingsOf(netDev)
	if to.Settings != nil {
		s = *to.Settings
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.altNames, func(_, of string) bool { return of == netDev })
	for _, alt := range s.AltNames {
		k.altNames[alt] = to.Name
	}
	s.AltNames = nil
	delete(k.settings, netDev)
	k.settings[to.Name] = s
}

// links implements [sriov.Links] for the tree. It reads network devices from the tree's
// files, because the kernel's answers and its sysfs agree.
type links struct{ tree *Tree }

// Link implements [sriov.Links].
func (l links) Link(name string) (*sriov.Link, error) {
	name = l.tree.kernel.named(name)
	dir := l.tree.abs("sys/class/net/" + name)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("network device %s: %w: %v", name, sriov.ErrNoLink, err) //nolint:errorlint // netlink knows no files
	}
	attribute := func(name string) string {
		raw, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			return "" // the device is being removed
		}
		return strings.TrimSpace(string(raw))
	}
	number := func(name string) int {
		n, err := strconv.Atoi(attribute(name))
		if err != nil {
			return 0
		}
		return n
	}
	out := &sriov.Link{NetDev: sriov.NetDev{
		Name: name, Index: number("ifindex"), MAC: attribute("address"), MTU: number("mtu"), Alias: attribute("ifalias"),
	}}
	settings := l.tree.kernel.settingsOf(name)
	out.Settings = &settings
	vfs, err := l.vfs(name)
	if err != nil {
		return nil, err
	}
	l.tree.kernel.mu.Lock()
	defer l.tree.kernel.mu.Unlock()
	for i, addr := range vfs {
		if addr == "" {
			continue
		}
		if out.VFs == nil {
			out.VFs = map[int]sriov.VFState{}
		}
		v := l.tree.kernel.vf(addr)
		if v.omitted != 0 {
			v.omitted--
			continue
		}
		out.VFs[i] = v.VFState
	}
	return out, nil
}

// vfs returns the addresses of the VFs that the network device name reports: all VFs of
// its PF if it is the uplink, and none for a representor or any other device.
func (l links) vfs(name string) ([]string, error) {
	addr, err := l.tree.FS().OfNetDev(name)
	if errors.Is(err, sriov.ErrNotPCI) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", sriov.ErrNoLink, err) //nolint:errorlint // netlink knows no files
	}
	uplink, err := l.tree.FS().Uplink(addr)
	if errors.Is(err, fs.ErrNotExist) || err == nil && uplink != name {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := l.tree.FS().Function(addr)
	if err != nil {
		return nil, err
	}
	return f.VFs, nil
}

// SetVF implements [sriov.Links].
func (l links) SetVF(pf string, index int, p sriov.Property, to sriov.VFState) error {
	vfs, err := l.vfs(pf)
	if err != nil {
		return err
	}
	if index < 0 || index >= len(vfs) || vfs[index] == "" {
		return fmt.Errorf("%s has no VF %d: %w", pf, index, fs.ErrInvalid)
	}
	k := &l.tree.kernel
	defer k.tell()
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.vf(vfs[index])
	if err := v.refuses(p); err != nil {
		return err
	}
	switch p {
	case sriov.PropertyVLAN:
		v.VLAN, v.VLANQoS, v.VLANProto = to.VLAN, to.VLANQoS, to.VLANProto
	case sriov.PropertySpoofChk:
		v.SpoofChk = to.SpoofChk
	case sriov.PropertyTrust:
		v.Trust = to.Trust
	case sriov.PropertyLinkState:
		v.LinkState = to.LinkState
	case sriov.PropertyRate:
		v.MinTxRate, v.MaxTxRate = to.MinTxRate, to.MaxTxRate
	case sriov.PropertyNodeGUID:
		v.NodeGUID = to.NodeGUID
	case sriov.PropertyPortGUID:
		v.PortGUID = to.PortGUID
	case sriov.PropertyMAC:
		v.MAC, v.given = to.MAC, strings.Trim(to.MAC, "0:") != ""
	}
	return nil
}

// chooses returns the MAC that the network device of the function at addr gets if
// somebody sets mac, see [Tree.Tell].
func (k *kernel) chooses(addr, mac string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.vfs[addr]
	if v == nil || !v.tells {
		return mac
	}
	if !v.given || v.Trust {
		v.MAC = mac
	}
	return v.MAC
}

// SetNetDev implements [sriov.Links]. It changes the tree, so the rules for the tree's
// own methods apply.
func (l links) SetNetDev(name string, to sriov.NetDev) error {
	t := l.tree
	dir := t.follow("sys/class/net/" + name)
	if dir == "" {
		return fmt.Errorf("network device %s: %w", name, sriov.ErrNoLink)
	}
	mac := to.MAC
	if is := t.read(dir, "address"); infiniband(is) && infiniband(mac) {
		mac = is[:len(is)-guidText] + mac[len(mac)-guidText:] // IPoIB lets only the GUID be set
	}
	if addr, err := t.FS().OfNetDev(name); err == nil {
		mac = t.kernel.chooses(addr, mac)
	}
	t.write(dir, attr("mtu", to.MTU))
	t.write(dir, attr("address", mac))
	t.write(dir, attr("ifalias", to.Alias))
	t.kernel.set(name, to)
	if to.Name != name {
		t.RenameNetDev(name, to.Name)
	}
	return t.Err()
}

// Events implements [sriov.Links].
func (l links) Events(ctx context.Context) (<-chan struct{}, error) {
	c := make(chan struct{}, 1)
	k := &l.tree.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners[c] = true
	context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.listeners, c)
		close(c)
	})
	return c, nil
}
