package sriovtest_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

func addAll(tree *sriovtest.Tree) {
	tree.AddIGB()
	tree.AddICE()
	tree.AddSwitchdev()
	tree.AddFunction(sriovtest.Function{Address: "0000:00:03.0", Vendor: "1af4", Device: "1041",
		Driver: "virtio-pci", Virtio: "virtio2", NetDev: "eth0", NUMA: -1})
	tree.AddNetDev("", sriovtest.NetDev{Name: "lo"})
}

func build(t *testing.T) *sriovtest.Tree {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	addAll(tree)
	check(t, tree)
	return tree
}

// check fails the test if the tree has an error or a dangling link.
func check(t *testing.T, tree *sriovtest.Tree) {
	t.Helper()
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(tree.Root(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type() == fs.ModeSymlink {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The targets equal those that kernels print for such devices.
func TestLinks(t *testing.T) {
	tree := build(t)
	const (
		root = "../../../devices/pci0000:00/0000:00:03.0"
		igb  = "../../../devices/pci0000:20/0000:20:00.0/0000:21:00.0"
	)
	for path, want := range map[string]string{
		"bus/pci/devices/0000:00:03.0":                root,
		"bus/pci/devices/0000:00:03.0/driver":         "../../../bus/pci/drivers/virtio-pci",
		"bus/pci/devices/0000:00:03.0/subsystem":      "../../../bus/pci",
		"bus/pci/drivers/virtio-pci/0000:00:03.0":     "../../../../devices/pci0000:00/0000:00:03.0",
		"class/net/eth0":                              "../../devices/pci0000:00/0000:00:03.0/virtio2/net/eth0",
		"class/net/eth0/device":                       "../../../virtio2",
		"class/net/eth0/subsystem":                    "../../../../../../class/net",
		"class/net/eth0/device/subsystem":             "../../../../bus/virtio",
		"class/net/lo":                                "../../devices/virtual/net/lo",
		"bus/pci/devices/0000:21:00.0":                igb,
		"bus/pci/devices/0000:21:00.0/virtfn6":        "../0000:21:11.4",
		"bus/pci/devices/0000:21:11.4/physfn":         "../0000:21:00.0",
		"bus/pci/devices/0000:18:01.1/iommu_group":    "../../../../kernel/iommu_groups/83",
		"kernel/iommu_groups/83/devices/0000:18:01.1": "../../../../devices/pci0000:17/0000:17:02.0/0000:18:01.1",
		"bus/auxiliary/devices/mlx5_core.sf.2":        "../../../devices/pci0000:07/0000:07:00.0/0000:08:00.0/mlx5_core.sf.2",
		"class/net/enp8s0f0s88":                       "../../devices/pci0000:07/0000:07:00.0/0000:08:00.0/mlx5_core.sf.2/net/enp8s0f0s88",
	} {
		got, err := os.Readlink(filepath.Join(tree.Root(), "sys", path))
		if err != nil || got != want {
			t.Errorf("%s -> %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestAttributes(t *testing.T) {
	tree := build(t)
	for path, want := range map[string]string{
		"0000:21:00.0/vendor":         "0x8086\n",
		"0000:21:10.0/device":         "0x10ca\n",
		"0000:41:11.4/numa_node":      "1\n",
		"0000:00:03.0/numa_node":      "-1\n",
		"0000:21:00.0/sriov_totalvfs": "7\n",
		"0000:18:00.0/sriov_numvfs":   "4\n",
		"0000:00:03.0/modalias":       "pci:v00001AF4d00001041sv00001AF4sd00000000bc02sc00i00\n",
		"0000:00:03.0/uevent": "PCI_CLASS=20000\nPCI_ID=1AF4:1041\nPCI_SUBSYS_ID=1AF4:0000\n" +
			"PCI_SLOT_NAME=0000:00:03.0\nMODALIAS=pci:v00001AF4d00001041sv00001AF4sd00000000bc02sc00i00\n",
		"0000:08:00.0/net/enp8s0f0_1/phys_port_name": "pf0vf1\n",
		"0000:21:00.0/net/enp33s0/dev_id":            "0x0\n",
	} {
		got, err := os.ReadFile(filepath.Join(tree.Root(), "sys/bus/pci/devices", path))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

// names returns the names of the links in a directory below sys.
func names(t *testing.T, tree *sriovtest.Tree, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(tree.Root(), "sys", dir))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestRemove(t *testing.T) {
	tree := build(t)
	tree.Remove("0000:21:10.2")
	check(t, tree)
	pf, err := tree.FS().Function("0000:21:00.0")
	if err != nil || pf.NumVFs != 6 || pf.VFs[1] != "" || pf.VFs[2] != "0000:21:10.4" {
		t.Errorf("after its VF 1 is gone the PF reads as %+v, %v", pf, err)
	}
	tree.AddVF(sriovtest.VF{PF: "0000:21:00.0", Index: 1, Address: "0000:21:10.2", NetDev: "enp33s16f2"})
	for _, addr := range []string{"0000:21:00.0", "0000:41:00.0", "0000:18:00.0", "0000:08:00.0", "0000:00:03.0"} {
		tree.Remove(addr)
		check(t, tree)
	}
	for dir, want := range map[string][]string{
		"bus/pci/devices":                {"0000:07:00.0", "0000:17:02.0", "0000:20:00.0", "0000:40:00.0"}, // bridges
		"class/net":                      {"lo"},
		"bus/pci/drivers/igbvf":          nil,
		"bus/auxiliary/devices":          nil,
		"bus/virtio/devices":             nil,
		"kernel/iommu_groups/83/devices": nil,
	} {
		if got := names(t, tree, dir); !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", dir, got, want)
		}
	}
	addAll(tree) // the tree is as new, except that lo is still there
	if err := tree.Err(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("adding lo again: %v", err)
	}
}

func TestBind(t *testing.T) {
	tree := build(t)
	for _, driver := range []string{"vfio-pci", "", "iavf"} {
		tree.Bind("0000:18:01.0", driver)
		check(t, tree)
		f, err := tree.FS().Function("0000:18:01.0")
		if err != nil || f.Driver != driver || len(f.NetDevs) != 0 || f.VFIndex != 0 {
			t.Errorf("bound to %q it reads as %+v, %v", driver, f, err)
		}
	}
	if got, want := names(t, tree, "bus/pci/drivers/iavf"), []string{"0000:18:01.0", "0000:18:01.3"}; !slices.Equal(got, want) {
		t.Errorf("iavf drives %q, want %q", got, want)
	}
}

func TestNetDevMoves(t *testing.T) {
	tree := build(t)
	for _, c := range []struct{ name, parent, function string }{
		{"ens1f0v0", "0000:18:01.0", "0000:18:01.0"},
		{"eth0", "0000:00:03.0", "0000:00:03.0"},
		{"enp8s0f0s88", "mlx5_core.sf.2", "0000:08:00.0"},
	} {
		tree.RemoveNetDev(c.name)
		check(t, tree)
		if addr, err := tree.FS().OfNetDev(c.name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has left, but stands on %q, %v", c.name, addr, err)
		}
		tree.AddNetDev(c.parent, sriovtest.NetDev{Name: c.name})
		check(t, tree)
		if addr, err := tree.FS().OfNetDev(c.name); addr != c.function {
			t.Errorf("%s is back on %q, %v, want %s", c.name, addr, err, c.function)
		}
	}
}

// A description that makes no sense is an error, and later calls do nothing.
func TestErrors(t *testing.T) {
	type tree = sriovtest.Tree
	for name, c := range map[string]struct {
		do   func(*tree)
		want error // nil: any
	}{
		"short address":       {func(t *tree) { t.AddFunction(sriovtest.Function{Address: "21:00.0"}) }, sriov.ErrAddress},
		"address of a path":   {func(t *tree) { t.Remove("../../devices") }, sriov.ErrAddress},
		"same address":        {func(t *tree) { t.AddPF(sriovtest.PF{Address: "0000:18:00.0", TotalVFs: 1}) }, fs.ErrExist},
		"vendor with prefix":  {func(t *tree) { t.AddFunction(sriovtest.Function{Address: "0000:01:00.0", Vendor: "0x8086"}) }, nil},
		"class of four":       {func(t *tree) { t.AddFunction(sriovtest.Function{Address: "0000:01:00.0", Class: "0200"}) }, nil},
		"PF without VFs":      {func(t *tree) { t.AddPF(sriovtest.PF{Address: "0000:01:00.0"}) }, nil},
		"VF without PF":       {func(t *tree) { t.AddVF(sriovtest.VF{PF: "0000:01:00.0", Address: "0000:01:10.0"}) }, fs.ErrNotExist},
		"VF of a VF":          {func(t *tree) { t.AddVF(sriovtest.VF{PF: "0000:18:01.0", Address: "0000:01:10.0"}) }, nil},
		"one VF too many":     {func(t *tree) { t.AddVF(sriovtest.VF{PF: "0000:18:00.0", Index: 128, Address: "0000:18:11.0"}) }, nil},
		"same index":          {func(t *tree) { t.AddVF(sriovtest.VF{PF: "0000:18:00.0", Index: 1, Address: "0000:18:11.0"}) }, fs.ErrExist},
		"same network device": {func(t *tree) { t.AddNetDev("", sriovtest.NetDev{Name: "ens1f0"}) }, fs.ErrExist},
		"long network device": {func(t *tree) { t.AddNetDev("", sriovtest.NetDev{Name: "0123456789abcdef"}) }, nil},
		"network device path": {func(t *tree) { t.AddNetDev("", sriovtest.NetDev{Name: "../eth0"}) }, nil},
		"device on nothing":   {func(t *tree) { t.AddNetDev("mlx5_core.sf.7", sriovtest.NetDev{Name: "a"}) }, fs.ErrNotExist},
		"no such device":      {func(t *tree) { t.RemoveNetDev("ens9") }, fs.ErrNotExist},
		"no such function":    {func(t *tree) { t.Remove("0000:99:00.0") }, fs.ErrNotExist},
		"driver of a path":    {func(t *tree) { t.Bind("0000:18:00.0", "../ice") }, nil},
		"bind nothing":        {func(t *tree) { t.Bind("0000:99:00.0", "ice") }, fs.ErrNotExist},
		"bad auxiliary ID":    {func(t *tree) { t.AddAuxiliary(sriovtest.Auxiliary{ID: "sf.2", Parent: "0000:18:00.0"}) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tree := sriovtest.New(t.TempDir())
			tree.AddICE()
			check(t, tree)
			c.do(tree)
			err := tree.Err()
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			tree.AddNetDev("", sriovtest.NetDev{Name: "later"})
			if addr, later := tree.FS().OfNetDev("later"); !errors.Is(later, fs.ErrNotExist) || !errors.Is(tree.Err(), err) {
				t.Errorf("after the failure: %q, %v, %v", addr, later, tree.Err())
			}
		})
	}
	if err := sriovtest.New(filepath.Join(t.TempDir(), "\x00")).Err(); err == nil {
		t.Error("a tree in an impossible place")
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "sysfs")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	tree := sriovtest.New(dir)
	tree.AddPF(sriovtest.PF{Address: "0000:21:00.0", NetDev: "ens1", Driver: "igb", NUMA: 1, TotalVFs: 7})
	tree.AddVF(sriovtest.VF{PF: "0000:21:00.0", Index: 0, Address: "0000:21:10.0", Driver: "igbvf", NetDev: "ens1v0"})
	tree.RemoveNetDev("ens1v0") // into a pod
	if err := tree.Err(); err != nil {
		panic(err)
	}

	f, err := tree.FS().Function("0000:21:10.0")
	if err != nil {
		panic(err)
	}
	fmt.Println(f.PF, f.VFIndex, f.NUMANode, f.NetDevs)
	// Output: 0000:21:00.0 0 1 []
}

// Adapters of several vendors coexist in one machine, and are removed without a trace.
func TestVendors(t *testing.T) {
	tree := build(t)
	tree.AddI40E()
	tree.AddICESwitchdev()
	tree.AddMLX5Dual()
	tree.AddBNXT()
	check(t, tree)
	before := names(t, tree, "bus/auxiliary/devices")
	for _, pf := range []string{"0000:5e:00.0", "0000:5e:00.1", "0000:51:00.0", "0000:c1:00.0", "0000:c1:00.1", "0000:86:00.0", "0000:86:00.1"} {
		tree.Remove(pf)
		check(t, tree)
	}
	if got := names(t, tree, "bus/auxiliary/devices"); len(before) != 12 || !slices.Equal(got, []string{"mlx5_core.sf.2"}) {
		t.Errorf("auxiliary devices %q, were %q", got, before)
	}
	if got := names(t, tree, "bus/pci/drivers/bnxt_en"); len(got) != 0 {
		t.Errorf("bnxt_en drives %q", got)
	}
	tree.AddAuxiliary(sriovtest.Auxiliary{ID: "mlx5_core.eth.9", Parent: "mlx5_core.sf.9", SFNum: sriovtest.NoSF})
	if err := tree.Err(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a part of a subfunction that is not there: %v", err)
	}
}
