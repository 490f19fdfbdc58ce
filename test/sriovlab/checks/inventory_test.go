//go:build sriovlab

package checks

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/jaypipes/ghw"
	"github.com/jaypipes/pcidb"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/inventory"
)

// function is what the inventory must say about a PCI function.
type function struct {
	PF         string // of a VF
	VFIndex    int
	VFs        []string
	NetDevs    []string
	Driver     string
	IOMMUGroup string
	NUMANode   int
}

// readFunction reads a PCI function from sysfs without package sriov.
func readFunction(t *testing.T, addr string) function {
	t.Helper()
	dir := filepath.Join("/sys/bus/pci/devices", addr)
	link := func(name string) string {
		target, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return filepath.Base(target)
	}
	f := function{PF: link("physfn"), VFIndex: -1, Driver: link("driver"), IOMMUGroup: link("iommu_group")}
	for i := range 7 {
		if vf := link("virtfn" + strconv.Itoa(i)); vf != "" {
			f.VFs = append(f.VFs, vf)
		}
		if self, err := os.Readlink(filepath.Join(dir, "physfn", "virtfn"+strconv.Itoa(i))); err == nil && filepath.Base(self) == addr {
			f.VFIndex = i
		}
	}
	devices, err := os.ReadDir(filepath.Join(dir, "net"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, d := range devices {
		f.NetDevs = append(f.NetDevs, d.Name())
	}
	numa, err := os.ReadFile(filepath.Join(dir, "numa_node"))
	if err != nil {
		t.Fatal(err)
	}
	if f.NUMANode, err = strconv.Atoi(strings.TrimSpace(string(numa))); err != nil {
		t.Fatal(err)
	}
	return f
}

// said converts package sriov's answer to the same form.
func said(f sriov.Function) function {
	return function{f.PF, f.VFIndex, f.VFs, f.NetDevs, f.Driver, f.IOMMUGroup, f.NUMANode}
}

// TestInventoryIsWhatSysfsSays proves that the inventory and package sriov agree with
// sysfs about every function.
func TestInventoryIsWhatSysfsSays(t *testing.T) {
	inv, err := inventory.Read("/")
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Functions) != 16 || len(inv.Nodes) != 2 {
		t.Errorf("%d network functions on %d NUMA nodes, want 16 on 2", len(inv.Functions), len(inv.Nodes))
	}
	for numa, pf := range pfs {
		for index, addr := range append([]string{pf.address}, pf.vfs...) {
			t.Run(addr, func(t *testing.T) {
				want := readFunction(t, addr)
				switch {
				case index == 0 && (want.Driver != "igb" || !reflect.DeepEqual(want.VFs, pf.vfs)):
					t.Fatalf("the guest's PF is not as it was configured: %+v", want)
				case index > 0 && (want.Driver != "igbvf" || want.PF != pf.address || want.VFIndex != index-1):
					t.Fatalf("the guest's VF is not as it was configured: %+v", want)
				case want.NUMANode != numa, want.IOMMUGroup == "", len(want.NetDevs) != 1:
					t.Fatalf("the guest's function is not as it was configured: %+v", want)
				}
				agree(t, inv, addr, want)
			})
		}
	}
}

// agree fails unless all ways to ask for a function answer what sysfs says.
func agree(t *testing.T, inv *inventory.Inventory, addr string, want function) {
	t.Helper()
	f, err := sriov.FS{}.Function(addr)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(*f); !reflect.DeepEqual(got, want) {
		t.Errorf("sriov %+v, sysfs %+v", got, want)
	}
	listed, ok := inv.Function(addr)
	if got := said(listed.Function); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("inventory %v %+v, sysfs %+v", ok, got, want)
	}
	if got, err := (sriov.FS{}).OfNetDev(want.NetDevs[0]); err != nil || got != addr {
		t.Errorf("%s is on device %s (%v), want %s", want.NetDevs[0], got, err, addr)
	}
	if want.PF == "" {
		return
	}
	uplink := readFunction(t, want.PF).NetDevs[0]
	if got, index, err := (sriov.FS{}).PFNetDev(addr); err != nil || got != uplink || index != want.VFIndex {
		t.Errorf("VF %d of %s (%v), want %d of %s", index, got, err, want.VFIndex, uplink)
	}
}

// TestInventoryIsWhatGHWSays proves that the inventory agrees with ghw, an independent
// library, about the network devices and their PCI functions.
func TestInventoryIsWhatGHWSays(t *testing.T) {
	inv, err := inventory.Read("/")
	if err != nil {
		t.Fatal(err)
	}
	pci, err := ghw.PCI(ghw.WithDisableTools(), ghw.WithPCIDB(&pcidb.PCIDB{})) // without names of vendors and products
	if err != nil {
		t.Fatal(err)
	}
	network, err := ghw.Network(ghw.WithDisableTools())
	if err != nil {
		t.Fatal(err)
	}
	netDevs := map[string][]string{}
	for _, nic := range network.NICs {
		if nic.PCIAddress != nil {
			netDevs[*nic.PCIAddress] = append(netDevs[*nic.PCIAddress], nic.Name)
		}
	}
	said := map[string]bool{}
	for _, d := range pci.Devices {
		if d.Class.ID != "02" {
			continue
		}
		said[d.Address] = true
		f, ok := inv.Function(d.Address)
		if !ok || d.Node == nil {
			t.Errorf("%s: in the inventory: %t; NUMA node according to ghw: %v", d.Address, ok, d.Node)
			continue
		}
		got := fmt.Sprint(f.Vendor, f.Device, f.Subvendor, f.Subdevice, f.Driver, f.NUMANode, f.Bridge, f.NetDevs)
		want := fmt.Sprint(d.Vendor.ID, d.Product.ID, d.Subsystem.VendorID, d.Subsystem.ID, d.Driver, d.Node.ID, d.ParentAddress, netDevs[d.Address])
		if got != want {
			t.Errorf("%s: inventory %s, ghw %s", d.Address, got, want)
		}
	}
	if len(said) != 16 {
		t.Errorf("ghw knows %d network functions, want 2 PFs and 14 VFs", len(said))
	}
}

// restart sets a VF's device up and down until its driver and its PF's driver agree.
// After a reset, igbvf waits only a moment for the PF's driver, which may have no
// processor just then, so restart tries several times.
func restart(t *testing.T, vf netlink.Link, agreed func() bool) {
	t.Helper()
	for range 10 {
		if err := errors.Join(netlink.LinkSetUp(vf), netlink.LinkSetDown(vf)); err != nil {
			t.Fatal(err)
		}
		if agreed() {
			return
		}
	}
}

// TestIndexIsTheHardwares proves that a MAC set on the PF for a VF's index reaches that
// VF. The VF's driver takes the MAC over when its device is next set up.
func TestIndexIsTheHardwares(t *testing.T) {
	for _, pf := range pfs {
		addr := pf.vfs[3]
		name, index, err := sriov.FS{}.PFNetDev(addr)
		if err != nil {
			t.Fatal(err)
		}
		uplink, err := netlinksafe.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		vf := linkOf(t, addr)
		before := vf.Attrs().HardwareAddr
		setMAC := func(mac net.HardwareAddr) {
			if err := netlink.LinkSetVfHardwareAddr(uplink, index, mac); err != nil {
				t.Fatal(err)
			}
			restart(t, vf, func() bool { return linkOf(t, addr).Attrs().HardwareAddr.String() == mac.String() })
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 3, byte(index)}
		setMAC(mac)
		if got := linkOf(t, addr).Attrs().HardwareAddr; got.String() != mac.String() {
			t.Errorf("%s has MAC %s, want %s as set on its PF for VF %d", addr, got, mac, index)
		}
		setMAC(before)
	}
}

// TestTrustedVFKeepsItsOwnMAC proves which setting of a VF keeps its driver from taking
// over the MAC that the PF has for it: only trust, not a VLAN. igb lets a trusted VF
// set its own MAC, and igbvf does so whenever its device is set down, which overwrites
// the PF's. So a plugin must set the MAC first and trust the VF afterwards.
func TestTrustedVFKeepsItsOwnMAC(t *testing.T) {
	addr, mac := pfs[0].vfs[3], net.HardwareAddr{2, 0, 0, 0, 3, 3}
	vf := linkOf(t, addr)
	uplink, was := vfOf(t, addr)
	state := hardware(t)
	before, err := sriov.Host{}.Snapshot(addr)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		set   func() error
		takes bool
	}{
		"nothing":     {func() error { return nil }, true},
		"VLAN":        {func() error { return netlink.LinkSetVfVlanQos(uplink, was.ID, 100, 3) }, true},
		"spoof check": {func() error { return netlink.LinkSetVfSpoofchk(uplink, was.ID, false) }, true},
		"trust":       {func() error { return netlink.LinkSetVfTrust(uplink, was.ID, true) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(tc.set(), netlink.LinkSetVfHardwareAddr(uplink, was.ID, mac)); err != nil {
				t.Fatal(err)
			}
			var own, now string
			ok := false
			restart(t, vf, func() bool {
				_, state := vfOf(t, addr)
				own, now = linkOf(t, addr).Attrs().HardwareAddr.String(), state.Mac.String()
				ok = (own == mac.String()) == tc.takes && now == own
				return ok
			})
			if !ok {
				t.Errorf("the VF has MAC %s and its PF has %s for it; %s was set on the PF", own, now, mac)
			}
			if _, err := (sriov.Host{}).Reset(addr, before); err != nil {
				t.Error(err)
			}
			state.same(t)
		})
	}
}
