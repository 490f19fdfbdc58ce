package sriov_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// build returns a tree that the given functions filled.
func build(t testing.TB, add ...func(*sriovtest.Tree)) *sriovtest.Tree {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	for _, f := range add {
		f(tree)
	}
	check(t, tree)
	return tree
}

func check(t testing.TB, tree *sriovtest.Tree) {
	t.Helper()
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
}

// function reads a function that the tree must have.
func function(t testing.TB, tree *sriovtest.Tree, addr string) sriov.Function {
	t.Helper()
	f, err := tree.FS().Function(addr)
	if err != nil {
		t.Fatal(err)
	}
	if f.Instance == 0 {
		t.Errorf("%s has no instance", addr)
	}
	f.Instance = 0 // depends on the tree's file system
	return *f
}

func addOthers(tree *sriovtest.Tree) {
	tree.AddFunction(sriovtest.Function{Address: "0000:00:03.0", Vendor: "1af4", Device: "1041",
		Driver: "virtio-pci", Virtio: "virtio2", NetDev: "eth0", NUMA: -1})
	tree.AddPF(sriovtest.PF{Address: "0000:65:00.0", Device: "1572", Driver: "i40e", TotalVFs: 64, NetDev: "ens2", NUMA: -1})
	tree.AddVF(sriovtest.VF{PF: "0000:65:00.0", Index: 11, Address: "0000:65:03.3", Device: "154c", Driver: "iavf"})
	tree.AddPF(sriovtest.PF{Address: "0001:01:00.0", TotalVFs: 1})
}

func TestFunction(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB, (*sriovtest.Tree).AddICE, (*sriovtest.Tree).AddSwitchdev, addOthers)
	for _, want := range []sriov.Function{
		{Address: "0000:41:00.0", VFIndex: -1, TotalVFs: 7, NumVFs: 7, NUMANode: 1, Driver: "igb",
			VFs: []string{"0000:41:10.0", "0000:41:10.2", "0000:41:10.4", "0000:41:10.6",
				"0000:41:11.0", "0000:41:11.2", "0000:41:11.4"},
			NetDevs: []string{"enp65s0"}, Vendor: "8086", Device: "10c9", Class: "020000"},
		{Address: "0000:21:11.4", PF: "0000:21:00.0", VFIndex: 6, NetDevs: []string{"enp33s17f4"},
			Driver: "igbvf", Vendor: "8086", Device: "10ca", Class: "020000"},
		{Address: "0000:18:01.1", PF: "0000:18:00.0", VFIndex: 1, Driver: "vfio-pci", IOMMUGroup: "83",
			Vendor: "8086", Device: "1889", Class: "020000"},
		{Address: "0000:18:01.2", PF: "0000:18:00.0", VFIndex: 2, IOMMUGroup: "84",
			Vendor: "8086", Device: "1889", Class: "020000"},
		{Address: "0000:08:00.0", VFIndex: -1, TotalVFs: 8, NumVFs: 2, VFs: []string{"0000:08:00.2", "0000:08:00.3"},
			NetDevs: []string{"en8f0pf0sf88", "enp8s0f0_0", "enp8s0f0_1", "enp8s0f0np0"},
			Driver:  "mlx5_core", IOMMUGroup: "29", NUMANode: 1, Vendor: "15b3", Device: "101d", Class: "020000"},
		{Address: "0000:00:03.0", VFIndex: -1, NetDevs: []string{"eth0"}, Driver: "virtio-pci", NUMANode: -1,
			Vendor: "1af4", Device: "1041", Class: "020000"},
		{Address: "0000:65:03.3", PF: "0000:65:00.0", VFIndex: 11, Driver: "iavf", NUMANode: -1,
			Vendor: "8086", Device: "154c", Class: "020000"},
		{Address: "0001:01:00.0", VFIndex: -1, TotalVFs: 1, Vendor: "8086", Device: "10c9", Class: "020000"},
	} {
		for _, addr := range []string{want.Address, strings.ToUpper(want.Address)} {
			if got := function(t, tree, addr); !reflect.DeepEqual(got, want) {
				t.Errorf("Function(%q) =\n%+v, want\n%+v", addr, got, want)
			}
		}
	}
}

func TestFunctionRole(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE, (*sriovtest.Tree).AddSwitchdev, addOthers)
	for addr, want := range map[string]string{
		"0000:18:00.0": "PF", "0000:18:01.0": "VF", "0000:18:01.1": "VF userspace", "0000:18:01.2": "VF",
		"0000:08:00.3": "VF userspace", "0000:00:03.0": "", "0001:01:00.0": "PF", // no VF enabled
	} {
		f := function(t, tree, addr)
		var got []string
		for role, is := range map[string]bool{"PF": f.IsPF(), "VF": f.IsVF()} {
			if is {
				got = append(got, role)
			}
		}
		if f.Userspace() {
			got = append(got, "userspace")
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s is %q, want %q", addr, s, want)
		}
	}
}

func TestUserspace(t *testing.T) {
	for driver, want := range map[string]bool{
		"vfio-pci": true, "mlx5_vfio_pci": true, "hisi-acc-vfio-pci": true, "uio_pci_generic": true, "igb_uio": true,
		"": false, "igbvf": false, "pci-pf-stub": false, "mlx5_core": false, "vfio": false,
	} {
		if got := (sriov.Function{Driver: driver}).Userspace(); got != want {
			t.Errorf("driver %q: userspace %t, want %t", driver, got, want)
		}
	}
}

// A kernel without any of the optional features shows a bare directory.
func TestFunctionPartial(t *testing.T) {
	tree := build(t)
	if err := os.MkdirAll(filepath.Join(tree.Root(), "sys/bus/pci/devices/0000:00:01.0"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := sriov.Function{Address: "0000:00:01.0", VFIndex: -1, NUMANode: -1}
	if got := function(t, tree, want.Address); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A VF that is created again at the same address and index is a different VF.
func TestInstance(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB)
	const pf, vf = "0000:21:00.0", "0000:21:10.4"
	read := func() *sriov.Snapshot {
		t.Helper()
		return must(tree.Host().Snapshot(vf))(t)
	}
	first := read()
	if !first.SameFunction(read()) || first.Instance == 0 {
		t.Errorf("it is not what it was a moment ago: instance %d", first.Instance)
	}
	if !first.SameFunction(&sriov.Snapshot{}) || !(&sriov.Snapshot{}).SameFunction(first) {
		t.Error("a snapshot that does not know contradicts")
	}
	tree.RemoveVFs(pf)
	tree.AddVF(sriovtest.VF{PF: pf, Index: 2, Address: vf, Driver: "igbvf"})
	if second := read(); first.SameFunction(second) {
		t.Errorf("instance %d before and %d after", first.Instance, second.Instance)
	}
}

func TestFunctionErrors(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	for addr, want := range map[string]error{
		"0000:18:01.7":                fs.ErrNotExist,
		"0000:18:01.9":                sriov.ErrAddress,
		"../../pci/devices":           sriov.ErrAddress,
		"0000:18:01.0/../0000:18:0.1": sriov.ErrAddress,
		"":                            sriov.ErrAddress,
	} {
		if f, err := tree.FS().Function(addr); f != nil || !errors.Is(err, want) {
			t.Errorf("Function(%q) = %v, %v, want %v", addr, f, err, want)
		}
	}
}

// rewrite replaces an entry of VF 0000:18:01.1 or its PF with a link (content starts
// with "->"), a file, or nothing.
func rewrite(t *testing.T, tree *sriovtest.Tree, path, content string) {
	t.Helper()
	path = filepath.Join(tree.Root(), "sys/bus/pci/devices", path)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	var err error
	if target, ok := strings.CutPrefix(content, "->"); ok {
		err = os.Symlink(target, path)
	} else if content != "" {
		err = os.WriteFile(path, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A tree that contradicts itself gives an error, never half an answer.
func TestFunctionContradictions(t *testing.T) {
	const pf, vf = "0000:18:00.0", "0000:18:01.1"
	for _, c := range []struct {
		name, addr, path, content string
		want                      error // nil: any
	}{
		{"VF without a way back", vf, pf + "/virtfn1", "", fs.ErrNotExist},
		{"way back leads to another VF", vf, pf + "/virtfn1", "->../0000:18:01.6", fs.ErrNotExist},
		{"PF is gone", vf, vf + "/physfn", "->../0000:19:00.0", fs.ErrNotExist},
		{"PF is no address", vf, vf + "/physfn", "->../usb1", sriov.ErrAddress},
		{"VF is no address", pf, pf + "/virtfn1", "->../usb1", sriov.ErrAddress},
		{"NUMA node is no number", vf, vf + "/numa_node", "one\n", nil},
		{"vendor is no ID", vf, vf + "/vendor", "8086\n", nil},
		{"attribute has no end", vf, vf + "/device", "0x" + strings.Repeat("0", 5000), nil},
		{"driver is no link", vf, vf + "/driver", "vfio-pci\n", nil},
		{"net is no directory", vf, vf + "/net", "eth0\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := build(t, (*sriovtest.Tree).AddICE)
			rewrite(t, tree, c.path, c.content)
			f, err := tree.FS().Function(c.addr)
			if err == nil || f != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %+v, %v, want error %v", f, err, c.want)
			}
			if c.want == nil && errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v: passes for an absent device", err)
			}
			if !strings.Contains(err.Error(), c.addr) {
				t.Errorf("%v: does not name %s", err, c.addr)
			}
		})
	}
}

// Unplugging a single VF leaves a hole and does not move the others.
func TestVFsWithHole(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	tree.Remove("0000:18:01.0")
	rewrite(t, tree, "0000:18:00.0/virtfn2", "->../0000:18:01.7") // dangling
	rewrite(t, tree, "0000:18:01.3/physfn", "->../0000:21:00.0")  // another PF's
	rewrite(t, tree, "0000:18:00.0/virtfn9x", "->../0000:18:01.1")
	f := function(t, tree, "0000:18:00.0")
	if want := []string{"", "0000:18:01.1"}; !reflect.DeepEqual(f.VFs, want) || f.NumVFs != 3 {
		t.Errorf("VFs %q, number %d, want %q and 3", f.VFs, f.NumVFs, want)
	}
	if f := function(t, tree, "0000:18:01.1"); f.VFIndex != 1 {
		t.Errorf("index %d, want 1", f.VFIndex)
	}
}

// TestFunctionMeanwhile reads while VFs come and go. Every answer must have been true
// at some moment: no VF with another VF's index or PF, and no PF with a VF at a wrong
// index.
func TestFunctionMeanwhile(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	vfs := []sriovtest.VF{
		{Address: "0000:18:01.0", Index: 0, NetDev: "v0"}, {Address: "0000:18:01.1", Index: 1, NetDev: "v1"},
		{Address: "0000:18:01.2", Index: 2, NetDev: "v2"},
	}
	tree.RemoveVFs("0000:18:00.0")
	check(t, tree)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for _, vf := range vfs {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := consistent(tree.FS(), vf); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 25 {
		for _, vf := range vfs {
			vf.PF, vf.Driver = "0000:18:00.0", "iavf"
			tree.AddVF(vf)
		}
		tree.RemoveVFs("0000:18:00.0")
	}
	close(done)
	readers.Wait()
	check(t, tree)
}

// consistent returns an error if the tree reports something about the VF that was never
// true.
func consistent(sys sriov.FS, want sriovtest.VF) error {
	f, err := sys.Function(want.Address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if f.IsVF() && (f.PF != "0000:18:00.0" || f.VFIndex != want.Index) || !f.IsVF() && f.VFIndex != -1 {
		return fmt.Errorf("VF %d reads as %+v", want.Index, f)
	}
	if _, index, err := sys.PFNetDev(want.Address); err == nil && index != want.Index {
		return fmt.Errorf("VF %d has index %d", want.Index, index)
	}
	if pf, err := sys.Function("0000:18:00.0"); err != nil {
		return err
	} else if want.Index < len(pf.VFs) && pf.VFs[want.Index] != "" && pf.VFs[want.Index] != want.Address {
		return fmt.Errorf("PF has %q, want %s at %d", pf.VFs, want.Address, want.Index)
	}
	return nil
}

// The zero FS reads the running kernel's sysfs, whatever it holds.
func TestRunningKernel(t *testing.T) {
	links, err := os.ReadDir("/sys/bus/pci/devices")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this machine has no PCI bus")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		f, err := sriov.FS{}.Function(link.Name())
		if err != nil {
			t.Error(err)
			continue
		}
		if f.Vendor == "" || len(f.Class) != 6 {
			t.Errorf("%+v", f)
		}
		for _, name := range f.NetDevs {
			if addr, err := (sriov.FS{}).OfNetDev(name); addr != f.Address {
				t.Errorf("OfNetDev(%q) = %q, %v, but it is listed by %s", name, addr, err, f.Address)
			}
		}
	}
}

func BenchmarkFunction(b *testing.B) {
	tree := build(b, (*sriovtest.Tree).AddIGB)
	for _, addr := range []string{"0000:21:00.0", "0000:21:11.4"} {
		b.Run(addr, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				function(b, tree, addr)
			}
		})
	}
}

// A function that is useful without a network device needs none.
func TestNeedsNetDev(t *testing.T) {
	const accelerator, noDriver, vfio = "0000:00:04.0", "0000:18:01.2", "0000:18:01.1"
	tree := build(t, (*sriovtest.Tree).AddIGB, (*sriovtest.Tree).AddICE)
	tree.AddFunction(sriovtest.Function{Address: accelerator, Device: "37c8", Class: "0b4000", Driver: "c6xx"})
	check(t, tree)
	for addr, want := range map[string]bool{igbVF: true, noDriver: true, vfio: false, accelerator: false} {
		if got, err := tree.FS().NeedsNetDev(addr); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", addr, got, err, want)
		}
	}
	if _, err := tree.FS().NeedsNetDev("0000:99:00.0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a function that is gone: %v", err)
	}
}
