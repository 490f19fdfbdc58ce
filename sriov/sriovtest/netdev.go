package sriovtest

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov"
)

// NetDev describes a network device. Only Name is required.
type NetDev struct {
	Name string // at most 15 bytes
	MAC  string // 20 bytes for an InfiniBand device; by default a generated, locally administered address
	// PhysPortName is p0 for an uplink and pf0vf3 for a representor, see
	// [sriov.FS.Uplink]. It is empty for a driver that names no ports.
	PhysPortName string
	PhysSwitchID string // the same for all ports of one embedded switch; may be empty
	DevPort      int    // port number, for functions with several ports
	DevID        int    // the same, for older drivers
}

// AddNetDev adds a network device to parent: the address of a PCI function (the device
// then sits on the function's virtio device, if it has one), the ID of an auxiliary
// device, or empty for a virtual device such as a bridge or lo.
//
// The tree contains only devices of the network namespace that it represents, so adding
// and removing a device also models its moves into and out of this namespace.
func (t *Tree) AddNetDev(parent string, n NetDev) {
	t.component("network device", n.Name)
	if len(n.Name) > 15 {
		t.fail("network device name %q is longer than 15 bytes", n.Name)
	}
	if t.follow("sys/class/net/"+n.Name) != "" {
		t.fail("network device %s: %w", n.Name, fs.ErrExist)
	}
	device, dir := t.parent(parent), "sys/devices/virtual/net/"+n.Name
	if device != "" {
		dir = device + "/net/" + n.Name
	}
	t.ifindex++
	mac := cmp.Or(n.MAC, fmt.Sprintf("02:00:00:00:%02x:%02x", t.ifindex>>8&0xff, t.ifindex&0xff))
	hardware := unix.ARPHRD_ETHER
	if infiniband(mac) {
		hardware = unix.ARPHRD_INFINIBAND
	}
	attrs := []entry{
		attr("address", mac), attr("ifindex", t.ifindex), attr("mtu", 1500), attr("type", hardware),
		attr("dev_port", n.DevPort), attr("dev_id", fmt.Sprintf("%#x", n.DevID)),
		attr("uevent", fmt.Sprintf("INTERFACE=%s\nIFINDEX=%d", n.Name, t.ifindex)),
	}
	if n.PhysPortName != "" {
		attrs = append(attrs, attr("phys_port_name", n.PhysPortName))
	}
	if n.PhysSwitchID != "" {
		attrs = append(attrs, attr("phys_switch_id", n.PhysSwitchID))
	}
	links := []entry{{"subsystem", "sys/class/net"}}
	if device != "" {
		links = append(links, entry{"device", device})
	}
	t.place(dir, attrs, links)
	t.link("sys/class/net/"+n.Name, dir)
}

// RemoveNetDev removes a network device, or moves it to a namespace that the tree does
// not show.
func (t *Tree) RemoveNetDev(name string) {
	t.component("network device", name)
	dir := t.follow("sys/class/net/" + name)
	if dir == "" {
		t.fail("network device %s: %w", name, fs.ErrNotExist)
		return
	}
	t.remove("sys/class/net/" + name)
	t.remove(dir)
	// The kernel keeps a net directory only while it has entries.
	if net := filepath.Dir(dir); net != "sys/devices/virtual/net" && len(t.glob(net, "*")) == 0 {
		t.remove(net)
	}
}

// RenameNetDev renames a network device.
func (t *Tree) RenameNetDev(name, to string) {
	t.component("network device", to)
	dir := t.follow("sys/class/net/" + name)
	if dir == "" {
		t.fail("network device %s: %w", name, fs.ErrNotExist)
		return
	}
	if t.follow("sys/class/net/"+to) != "" {
		t.fail("network device %s: %w", to, fs.ErrExist)
	}
	renamed := filepath.Dir(dir) + "/" + to
	t.remove("sys/class/net/" + name)
	t.do(func() error { return os.Rename(t.abs(dir), t.abs(renamed)) })
	t.link("sys/class/net/"+to, renamed)
}

// removeNetDevs removes the network devices of a function and of the devices on it.
func (t *Tree) removeNetDevs(dir string) {
	names := t.glob(dir+"/net", "*")
	for _, child := range t.glob(dir, "*") {
		if child != dir+"/net" && t.isDir(child) {
			names = append(names, t.glob(child+"/net", "*")...)
		}
	}
	for _, name := range names {
		t.RemoveNetDev(filepath.Base(name))
	}
}

// parent returns the directory of the device that a network device sits on, or an empty
// string for none.
func (t *Tree) parent(id string) string {
	switch {
	case id == "":
		return ""
	case sriov.IsAuxiliary(id):
		dir := t.follow("sys/bus/auxiliary/devices/" + id)
		if dir == "" {
			t.fail("no auxiliary device %s: %w", id, fs.ErrNotExist)
		}
		return dir
	}
	dir := t.mustDir(t.address(id))
	if virtio := t.glob(dir, "virtio*"); len(virtio) > 0 {
		return virtio[0]
	}
	return dir
}

// NoSF is the SFNum of an auxiliary device that is not a subfunction.
const NoSF = -1

// Auxiliary describes a device on the auxiliary bus: a subfunction, or a part of a
// function that has its own driver.
type Auxiliary struct {
	ID     string // for example mlx5_core.sf.2
	Parent string // address of a PCI function in the tree, or the ID of a subfunction
	Driver string // empty for none
	SFNum  int    // the administrator's number for the subfunction, or NoSF
	NetDev string // empty for none
}

// AddAuxiliary adds an auxiliary device to the tree.
func (t *Tree) AddAuxiliary(a Auxiliary) {
	if !sriov.IsAuxiliary(a.ID) {
		t.fail("%q is not an auxiliary device ID", a.ID)
	}
	if !sriov.IsAuxiliary(a.Parent) {
		t.address(a.Parent)
	}
	dir := t.parent(a.Parent) + "/" + a.ID
	links := []entry{{"subsystem", "sys/bus/auxiliary"}}
	if a.Driver != "" {
		t.component("driver", a.Driver)
		t.mkdir("sys/bus/auxiliary/drivers/" + a.Driver)
		links = append(links, entry{"driver", "sys/bus/auxiliary/drivers/" + a.Driver})
	}
	var attrs []entry
	if a.SFNum != NoSF {
		attrs = []entry{attr("sfnum", a.SFNum)}
	}
	t.place(dir, attrs, links)
	t.link("sys/bus/auxiliary/devices/"+a.ID, dir)
	if a.NetDev != "" {
		t.AddNetDev(a.ID, NetDev{Name: a.NetDev})
	}
}

// isDir reports whether a path in the tree is a directory and not a link to one.
func (t *Tree) isDir(path string) bool {
	info, err := os.Lstat(t.abs(path))
	return err == nil && info.IsDir()
}
