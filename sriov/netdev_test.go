package sriov_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

func TestPFNetDev(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, (*sriovtest.Tree).AddICE, (*sriovtest.Tree).AddSwitchdev, addOthers)
	tree.RemoveNetDev("enp65s0")
	check(t, tree)
	for _, c := range []struct {
		vf, name string
		index    int
		err      error
	}{
		{"0000:21:10.0", "enp33s0", 0, nil},
		{"0000:21:11.4", "enp33s0", 6, nil},
		{"0000:18:01.1", "ens1f0", 1, nil}, // the VF is bound to vfio-pci
		{"0000:18:01.3", "ens1f0", 3, nil}, // its network device is in a pod
		{"0000:08:00.2", "enp8s0f0np0", 0, nil},
		{"0000:08:00.3", "enp8s0f0np0", 1, nil},
		{"0000:65:03.3", "ens2", 11, nil},
		{"0000:41:10.0", "", -1, fs.ErrNotExist}, // the PF's network device is in another namespace
		{"0000:18:01.7", "", -1, fs.ErrNotExist},
		{"0000:18:00.0", "", -1, sriov.ErrNotVF},
		{"0000:00:03.0", "", -1, sriov.ErrNotVF},
		{"enp33s0", "", -1, sriov.ErrAddress},
	} {
		name, index, err := tree.FS().PFNetDev(c.vf)
		if name != c.name || index != c.index || !errors.Is(err, c.err) {
			t.Errorf("PFNetDev(%q) = %q, %d, %v, want %q, %d, %v", c.vf, name, index, err, c.name, c.index, c.err)
		}
	}
}

func TestPFNetDevUnlinked(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	rewrite(t, tree, "0000:18:00.0/virtfn1", "")
	rewrite(t, tree, "0000:18:01.2/physfn", "->../usb1")
	if name, _, err := tree.FS().PFNetDev("0000:18:01.1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("VF without a way back: %q, %v", name, err)
	}
	if name, _, err := tree.FS().PFNetDev("0000:18:01.2"); !errors.Is(err, sriov.ErrAddress) {
		t.Errorf("VF of something that is no PCI function: %q, %v", name, err)
	}
}

func TestUplink(t *testing.T) {
	type devs = []sriovtest.NetDev
	for _, c := range []struct {
		name string
		devs devs
		want string // empty if refused
		err  error
	}{
		{"none", nil, "", fs.ErrNotExist},
		{"the only one, unnamed", devs{{Name: "a"}}, "a", nil},
		{"the only one, named", devs{{Name: "a", PhysPortName: "p1"}}, "a", nil},
		{"only representors", devs{{Name: "a", PhysPortName: "pf0vf0"}, {Name: "b", PhysPortName: "c1pf0vf0"}}, "", fs.ErrNotExist},
		{"only representors that name the physical port", devs{{Name: "a", PhysPortName: "p0pf0vf0"}}, "", fs.ErrNotExist},
		{"split port", devs{{Name: "a", PhysPortName: "pf0vf0"}, {Name: "b", PhysPortName: "p0s1"}}, "b", nil},
		{"representors of every kind", devs{
			{Name: "a", PhysPortName: "pf0"}, {Name: "b", PhysPortName: "pf0vf10"}, {Name: "c", PhysPortName: "c1pf0sf88"},
			{Name: "d", PhysPortName: "pf0hpf"}, {Name: "e", PhysPortName: "c1pf0vf2"}, {Name: "f", PhysPortName: "p0"}, {Name: "g", PhysPortName: "p0pf0vf2"},
		}, "f", nil},
		{"unnamed uplink beside bare VF numbers", devs{{Name: "a", PhysPortName: "0"}, {Name: "b"}, {Name: "c", PhysPortName: "1"}}, "b", nil},
		{"named uplink beside an unnamed device", devs{{Name: "a"}, {Name: "b", PhysPortName: "p0"}}, "b", nil},
		{"a name of another kind", devs{{Name: "a", PhysPortName: "pf0vf0"}, {Name: "b", PhysPortName: "port-1"}}, "b", nil},
		{"names that only begin well", devs{{Name: "a", PhysPortName: "p0x"}, {Name: "b", PhysPortName: "p0s"}, {Name: "c"}}, "c", nil},
		{"two ports, dev_port", devs{{Name: "a", DevPort: 1}, {Name: "b", DevPort: 0}}, "b", nil},
		{"two ports, dev_id", devs{{Name: "a", DevID: 16}, {Name: "b", DevID: 2}}, "b", nil},
		{"no telling", devs{{Name: "a"}, {Name: "b"}}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := build(t)
			tree.AddPF(sriovtest.PF{Address: "0000:08:00.0", TotalVFs: 2})
			for _, d := range c.devs {
				tree.AddNetDev("0000:08:00.0", d)
			}
			check(t, tree)
			got, err := tree.FS().Uplink("0000:08:00.0")
			if got != c.want || (err == nil) != (c.want != "") || !errors.Is(err, c.err) && c.err != nil {
				t.Errorf("got %q, %v, want %q, %v", got, err, c.want, c.err)
			}
			if c.err == nil && errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v: passes for an absent device", err)
			}
		})
	}
}

// A network device that disappears during the query cannot be told from an uplink, nor
// can one whose port name cannot be read.
func TestUplinkAmongWhatCannotBeRead(t *testing.T) {
	const pf = "0000:08:00.0"
	tree := build(t, (*sriovtest.Tree).AddSwitchdev)
	net := filepath.Join(tree.Root(), "sys/bus/pci/devices", pf, "net")
	if err := os.Symlink("gone", filepath.Join(net, "ghost")); err != nil {
		t.Fatal(err)
	}
	if name, err := tree.FS().Uplink(pf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside one that is gone: %q, %v", name, err)
	}
	if err := errors.Join(os.Remove(filepath.Join(net, "ghost")), os.WriteFile(filepath.Join(net, "enp8s0f0_0/phys_port_name"), make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if name, err := tree.FS().Uplink(pf); name != "enp8s0f0np0" || err != nil {
		t.Errorf("beside one with an endless name: %q, %v", name, err)
	}
	tree.RemoveNetDev("enp8s0f0np0")
	tree.AddNetDev(pf, sriovtest.NetDev{Name: "enp8s0f0"}) // the driver names no ports
	if name, err := tree.FS().Uplink(pf); name != "enp8s0f0" || err != nil {
		t.Errorf("without port names, beside one with an endless name: %q, %v", name, err)
	}
}

func TestUplinkErrors(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	rewrite(t, tree, "0000:18:00.0/net", "ens1f0\n")
	for addr, want := range map[string]error{"0000:99:00.0": fs.ErrNotExist, "0000": sriov.ErrAddress, "0000:18:00.0": nil} {
		name, err := tree.FS().Uplink(addr)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("Uplink(%q) = %q, %v, want error %v", addr, name, err, want)
		}
	}
}

// addUSB adds a USB adapter below a PCI host controller.
func addUSB(t *testing.T, tree *sriovtest.Tree, name string) {
	t.Helper()
	tree.AddFunction(sriovtest.Function{Address: "0000:00:14.0", Class: "0c0330", Driver: "xhci_hcd"})
	check(t, tree)
	hub := filepath.Join(tree.Root(), "sys/devices/pci0000:00/0000:00:14.0/usb1")
	port := filepath.Join(hub, "1-1:1.0")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(port, "net", name), 0o755),
		os.Symlink("../../../../bus/usb", filepath.Join(hub, "subsystem")),
		os.Symlink("../../../../../bus/usb", filepath.Join(port, "subsystem")),
		os.Symlink("../../devices/pci0000:00/0000:00:14.0/usb1/1-1:1.0/net/"+name, filepath.Join(tree.Root(), "sys/class/net", name)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestOfNetDev(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, (*sriovtest.Tree).AddSwitchdev, addOthers)
	tree.AddNetDev("", sriovtest.NetDev{Name: "lo"})
	addUSB(t, tree, "enx0200")
	// A device directory that looks right but is not below sys/devices.
	for _, err := range []error{
		os.MkdirAll(filepath.Join(tree.Root(), "elsewhere/0000:21:00.0"), 0o755),
		os.Symlink("../../sys/bus/pci", filepath.Join(tree.Root(), "elsewhere/0000:21:00.0/subsystem")),
		os.Symlink("../../../elsewhere/0000:21:00.0/net/outside", filepath.Join(tree.Root(), "sys/class/net/outside")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, addr string
		err        error
	}{
		{"enp33s0", "0000:21:00.0", nil},
		{"enp65s16f2", "0000:41:10.2", nil},
		{"enp8s0f0_1", "0000:08:00.0", nil},  // a representor belongs to the PF
		{"enp8s0f0s88", "0000:08:00.0", nil}, // through mlx5_core.sf.2
		{"eth0", "0000:00:03.0", nil},        // through virtio2
		{"lo", "", sriov.ErrNotPCI},
		{"enx0200", "", sriov.ErrNotPCI}, // not the address of its USB controller
		{"outside", "", sriov.ErrNotPCI},
		{"eth7", "", fs.ErrNotExist},
		{"", "", fs.ErrInvalid},
		{"..", "", fs.ErrInvalid},
		{"../lo", "", fs.ErrInvalid},
		{"eth0\n", "", fs.ErrInvalid},
		{"eth0:1", "", fs.ErrInvalid},
		{strings.Repeat("e", 16), "", fs.ErrInvalid},
		{strings.Repeat("e", 1<<20), "", fs.ErrInvalid},
	} {
		addr, err := tree.FS().OfNetDev(c.name)
		if addr != c.addr || !errors.Is(err, c.err) {
			t.Errorf("OfNetDev(%.20q) = %q, %v, want %q, %v", c.name, addr, err, c.addr, c.err)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("OfNetDev(%.20q): error of %d bytes", c.name, len(err.Error()))
		}
	}
}

func TestVFOfNetDev(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, (*sriovtest.Tree).AddSwitchdev, addOthers)
	for _, c := range []struct {
		name, addr string
		err        error
	}{
		{"enp65s16f2", "0000:41:10.2", nil},
		{"enp33s0", "", sriov.ErrNotVF},     // belongs to a PF
		{"enp8s0f0_1", "", sriov.ErrNotVF},  // a representor
		{"enp8s0f0s88", "", sriov.ErrNotVF}, // belongs to a subfunction
		{"eth7", "", fs.ErrNotExist},
		{"0000:41:10.2", "", fs.ErrInvalid},
	} {
		f, err := tree.FS().VFOfNetDev(c.name)
		if !errors.Is(err, c.err) || err == nil && (f.Address != c.addr || f.PF != "0000:41:00.0") {
			t.Errorf("VFOfNetDev(%q) = %+v, %v, want %q, %v", c.name, f, err, c.addr, c.err)
		}
	}
}

func TestFunctionNamed(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB)
	for _, c := range []struct {
		id, addr string
		err      error
	}{
		{"0000:41:10.2", "0000:41:10.2", nil},
		{"0000:41:00.0", "0000:41:00.0", nil},
		{"enp65s16f2", "0000:41:10.2", nil},
		{"enp33s0", "", sriov.ErrNotVF},
		{"0000:41:1f.7", "", fs.ErrNotExist},
		{"eth7", "", fs.ErrNotExist},
		{"41:10.2", "", fs.ErrInvalid}, // neither an address nor a valid name of a network device
	} {
		f, err := tree.FS().FunctionNamed(c.id)
		if !errors.Is(err, c.err) || err == nil && f.Address != c.addr {
			t.Errorf("FunctionNamed(%q) = %+v, %v, want %q, %v", c.id, f, err, c.addr, c.err)
		}
	}
}

func TestVFWritten(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, addOthers)
	tree.AddAltName("enp65s16f2", "vf2-of-the-second-port")
	dir := strings.TrimPrefix(must(filepath.EvalSymlinks(tree.FS().Root+"/sys/bus/pci/devices/0000:41:10.2"))(t), tree.FS().Root)
	for text, want := range map[string]string{
		"0000:41:10.2": "0000:41:10.2", "enp65s16f2": "0000:41:10.2", "0000:41:00.0": "", "enp33s0": "", "": "", "vf2-of-the-second-port": "0000:41:10.2", strings.Repeat("x", 300): "", "/": "", "../../../../..": "",
		dir: "0000:41:10.2", dir + "/": "0000:41:10.2", dir + "/net/..": "0000:41:10.2", filepath.Dir(dir) + "/0000:41:00.0/virtfn1": "0000:41:10.2",
		"0000:41:10.2/.": "0000:41:10.2", "../devices/0000:41:10.2": "0000:41:10.2", "0000:41:00.0/virtfn1": "0000:41:10.2",
		"0000:00:03.0/virtio2": "", "0000:41:10.2/net": "", "/sys/devices/x/0000:41:10.2": "0000:41:10.2",
	} {
		f, err := tree.Host().VFWritten(text)
		if err != nil || (f == nil) != (want == "") || f != nil && f.Address != want {
			t.Errorf("VFWritten(%q) = %+v, %v, want %q", text, f, err, want)
		}
	}
}

func TestAuxiliary(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddSwitchdev)
	tree.AddAuxiliary(sriovtest.Auxiliary{ID: "mlx5_core.sf.3", Parent: "0000:08:00.0", SFNum: 89})
	check(t, tree)
	for _, want := range []sriov.Auxiliary{
		{ID: "mlx5_core.sf.2", Parent: "0000:08:00.0", NetDevs: []string{"enp8s0f0s88"}, Driver: "mlx5_core.sf", SFNum: 88},
		{ID: "mlx5_core.sf.3", Parent: "0000:08:00.0", SFNum: 89},
	} {
		got, err := tree.FS().Auxiliary(want.ID)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("Auxiliary(%q) = %+v, %v, want %+v", want.ID, got, err, want)
		}
	}
	if f := function(t, tree, "0000:08:00.0"); len(f.NetDevs) != 4 {
		t.Errorf("the PF has %q: subfunctions' devices are not its own", f.NetDevs)
	}
}

// Network devices are sorted, regardless of the order in the directory.
func TestNetDevOrder(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddSwitchdev)
	tree.RemoveNetDev("enp8s0f0s88")
	var pf, sf []string
	for i := range 12 {
		pf, sf = append(pf, fmt.Sprintf("pf%d", i)), append(sf, fmt.Sprintf("sf%d", i))
		tree.AddNetDev("0000:08:00.2", sriovtest.NetDev{Name: pf[i]})
		tree.AddNetDev("mlx5_core.sf.2", sriovtest.NetDev{Name: sf[i]})
	}
	tree.RemoveNetDev("enp8s0f0v0")
	check(t, tree)
	if f := function(t, tree, "0000:08:00.2"); !reflect.DeepEqual(f.NetDevs, pf) {
		t.Errorf("function: %q, want %q", f.NetDevs, pf)
	}
	if a, err := tree.FS().Auxiliary("mlx5_core.sf.2"); err != nil || !reflect.DeepEqual(a.NetDevs, sf) {
		t.Errorf("auxiliary device: %+v, %v, want %q", a, err, sf)
	}
}

func TestAuxiliaryErrors(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddSwitchdev)
	bus := filepath.Join(tree.Root(), "sys/bus/auxiliary/devices")
	// An auxiliary device of a platform device, a dangling link, and an auxiliary
	// device whose attributes make no sense.
	platform := filepath.Join(tree.Root(), "sys/devices/platform/snd.core.0")
	broken := filepath.Join(tree.Root(), "sys/devices/pci0000:07/0000:07:00.0/0000:08:00.0/mlx5_core.sf.2/sfnum")
	for _, err := range []error{
		os.MkdirAll(platform, 0o755),
		os.Symlink("../../../devices/platform/snd.core.0", filepath.Join(bus, "snd.core.0")),
		os.Symlink("../../../devices/platform/gone.core.0", filepath.Join(bus, "gone.core.0")),
		os.WriteFile(broken, []byte("many\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]error{
		"mlx5_core.sf.9": fs.ErrNotExist, "gone.core.0": fs.ErrNotExist, "snd.core.0": sriov.ErrNotPCI,
		"mlx5_core.sf.2": nil, "": fs.ErrInvalid, "0000:08:00.0": fs.ErrInvalid, "../../x.y.1": fs.ErrInvalid,
		"mlx5_core.sf": fs.ErrInvalid, "mlx5_core.sf.x": fs.ErrInvalid, "a..1": fs.ErrInvalid, "a.b.c.1": fs.ErrInvalid,
		strings.Repeat("a", 100) + ".sf.1": fs.ErrInvalid, "a.sf." + strings.Repeat("1", 100): fs.ErrInvalid,
	} {
		a, err := tree.FS().Auxiliary(id)
		if err == nil || a != nil || want != nil && !errors.Is(err, want) {
			t.Errorf("Auxiliary(%q) = %v, %v, want error %v", id, a, err, want)
		}
		if valid := !errors.Is(err, fs.ErrInvalid); sriov.IsAuxiliary(id) != valid {
			t.Errorf("IsAuxiliary(%q) = %t, but Auxiliary says %v", id, !valid, err)
		}
	}
}

func BenchmarkPFNetDev(b *testing.B) {
	tree := build(b, (*sriovtest.Tree).AddSwitchdev)
	for b.Loop() {
		if _, _, err := tree.FS().PFNetDev("0000:08:00.3"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOfParent(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, addOthers)
	for name, want := range map[string]string{
		"virtio2": "0000:00:03.0", "virtio9": "virtio9",
		"0000:21:10.4": "0000:21:10.4", "mlx5_core.sf.2": "mlx5_core.sf.2", "": "",
	} {
		if got := tree.FS().OfParent(name); got != want {
			t.Errorf("OfParent(%q) = %q, want %q", name, got, want)
		}
	}
}
