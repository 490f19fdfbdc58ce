package inventory_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov/inventory"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// build returns a tree that the given functions filled.
func build(t *testing.T, add ...func(*sriovtest.Tree)) *sriovtest.Tree {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	for _, f := range add {
		f(tree)
	}
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	return tree
}

func read(t *testing.T, root string) *inventory.Inventory {
	t.Helper()
	inv, err := inventory.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// render prints an inventory, one function per line.
func render(inv *inventory.Inventory) string {
	var b strings.Builder
	for _, f := range inv.Functions {
		role := "-"
		switch {
		case f.IsPF():
			role = fmt.Sprintf("PF %d/%d", f.NumVFs, f.TotalVFs)
		case f.IsVF():
			role = fmt.Sprintf("VF %s#%d", f.PF, f.VFIndex)
		}
		fmt.Fprintf(&b, "%s %s:%s %s:%s rev %s below %s node %d %q %v %s\n", f.Address, f.Vendor, f.Device,
			f.Subvendor, f.Subdevice, f.Revision, f.Bridge, f.NUMANode, f.Driver, f.NetDevs, role)
	}
	return b.String()
}

func TestReadLayouts(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddSwitchdev, (*sriovtest.Tree).AddICE, func(tree *sriovtest.Tree) {
		tree.AddFunction(sriovtest.Function{Address: "0000:00:1f.2", Class: "010601", Driver: "ahci"}) // no NIC
		tree.AddFunction(sriovtest.Function{Address: "0000:00:03.0", Vendor: "1af4", Device: "1041",
			Driver: "virtio-pci", Virtio: "virtio2", NetDev: "eth0", NUMA: -1})
		tree.AddFunction(sriovtest.Function{Address: "10000:01:00.0", NUMA: -1}) // behind a VMD
	})
	const want = `0000:00:03.0 1af4:1041 1af4:0000 rev 01 below  node -1 "virtio-pci" [eth0] -
0000:08:00.0 15b3:101d 15b3:0000 rev 01 below 0000:07:00.0 node 1 "mlx5_core" [en8f0pf0sf88 enp8s0f0_0 enp8s0f0_1 enp8s0f0np0] PF 2/8
0000:08:00.2 15b3:101e 15b3:0000 rev 01 below 0000:07:00.0 node 1 "mlx5_core" [enp8s0f0v0] VF 0000:08:00.0#0
0000:08:00.3 15b3:101e 15b3:0000 rev 01 below 0000:07:00.0 node 1 "mlx5_vfio_pci" [] VF 0000:08:00.0#1
0000:18:00.0 8086:159b 8086:0000 rev 01 below 0000:17:02.0 node 0 "ice" [ens1f0] PF 4/128
0000:18:01.0 8086:1889 8086:0000 rev 01 below 0000:17:02.0 node 0 "iavf" [ens1f0v0] VF 0000:18:00.0#0
0000:18:01.1 8086:1889 8086:0000 rev 01 below 0000:17:02.0 node 0 "vfio-pci" [] VF 0000:18:00.0#1
0000:18:01.2 8086:1889 8086:0000 rev 01 below 0000:17:02.0 node 0 "" [] VF 0000:18:00.0#2
0000:18:01.3 8086:1889 8086:0000 rev 01 below 0000:17:02.0 node 0 "iavf" [] VF 0000:18:00.0#3
10000:01:00.0 8086:10c9 8086:0000 rev 01 below  node -1 "" [] -
`
	inv := read(t, tree.Root())
	if got := render(inv); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if inv.Nodes != nil {
		t.Errorf("nodes %v of a tree that has none", inv.Nodes)
	}
}

func TestNodes(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddIGB)
	inv := read(t, tree.Root())
	want := []inventory.Node{
		{ID: 0, CPUs: []int{0, 1}, Distances: []int{10, 20}, MemoryBytes: 1 << 30},
		{ID: 1, CPUs: []int{2, 3}, Distances: []int{20, 10}, MemoryBytes: 1 << 30},
	}
	if !reflect.DeepEqual(inv.Nodes, want) {
		t.Errorf("nodes %v, want %v", inv.Nodes, want)
	}
	if len(inv.Functions) != 16 {
		t.Errorf("%d functions, want 2 PFs and 14 VFs", len(inv.Functions))
	}
	// Half a topology would be wrong.
	if err := os.Remove(filepath.Join(tree.Root(), "sys/devices/system/node/node1/distance")); err != nil {
		t.Fatal(err)
	}
	if inv := read(t, tree.Root()); inv.Nodes != nil || len(inv.Functions) != 16 {
		t.Errorf("%d functions and nodes %v with one node unreadable, want 16 and none", len(inv.Functions), inv.Nodes)
	}
}

func TestFunction(t *testing.T) {
	inv := read(t, build(t, (*sriovtest.Tree).AddICE).Root())
	if f, ok := inv.Function("0000:18:01.1"); !ok || !f.Userspace() || f.VFIndex != 1 {
		t.Errorf("VF 1 is %v, %t", f, ok)
	}
	for _, addr := range []string{"0000:18:01.7", "0000:17:02.0", "ens1f0", ""} {
		if f, ok := inv.Function(addr); ok {
			t.Errorf("Function(%q) = %v, want none", addr, f)
		}
	}
}

func TestReadNothing(t *testing.T) {
	tree := build(t)
	for _, dir := range []string{"", "sys/bus/pci/devices"} {
		if err := os.MkdirAll(filepath.Join(tree.Root(), dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if inv := read(t, tree.Root()); len(inv.Functions) != 0 || len(inv.Nodes) != 0 {
			t.Errorf("with empty %q: %v", dir, inv)
		}
	}
	if _, err := inventory.Read(filepath.Join(tree.Root(), "elsewhere")); err == nil {
		t.Error("a root without sys has an inventory")
	}
}

// A VF that its PF does not list is being removed or added.
func TestReadUnsettled(t *testing.T) {
	tree := build(t, (*sriovtest.Tree).AddICE)
	if err := os.Remove(filepath.Join(tree.Root(), "sys/bus/pci/devices/0000:18:00.0/virtfn1")); err != nil {
		t.Fatal(err)
	}
	_, err := inventory.Read(tree.Root())
	if err == nil || !strings.Contains(err.Error(), "0000:18:01.1") {
		t.Errorf("got %v, want an error that names the VF", err)
	}
}

// If ghw cannot read a device, it returns none at all. That must not pass for a machine
// without devices.
func TestReadIncomplete(t *testing.T) {
	for _, broken := range []string{"0000:00:1f.2/modalias", "0000:18:00.0/vendor"} {
		tree := build(t, (*sriovtest.Tree).AddICE, func(tree *sriovtest.Tree) {
			tree.AddFunction(sriovtest.Function{Address: "0000:00:1f.2", Class: "010601"})
		})
		path := filepath.Join(tree.Root(), "sys/bus/pci/devices", broken)
		if err := os.WriteFile(path, []byte("?\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if inv, err := inventory.Read(tree.Root()); err == nil {
			t.Errorf("with bad %s: %d functions, want an error", broken, len(inv.Functions))
		}
	}
}

// TestMain lets the test program, if started with INVENTORY_ROOT, read that inventory
// and do nothing else.
func TestMain(m *testing.M) {
	root, ok := os.LookupEnv("INVENTORY_ROOT")
	if !ok {
		os.Exit(m.Run())
	}
	if _, err := inventory.Read(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestQuiet runs Read as a separate program, on the machine's sysfs and on a tree with
// surprises, in an environment that tempts ghw to print, to look elsewhere and to fetch
// its database.
func TestQuiet(t *testing.T) {
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	clients := make(chan string, 16)
	go func() {
		for conn, err := proxy.Accept(); err == nil; conn, err = proxy.Accept() {
			clients <- conn.RemoteAddr().String()
			conn.Close()
		}
	}()
	for _, root := range []string{"/", build(t, (*sriovtest.Tree).AddICE).Root(), build(t).Root()} {
		home := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{
			"INVENTORY_ROOT=" + root, "HOME=" + home, "GHW_CHROOT=/nowhere", "GHW_LOG_LEVEL=debug",
			"PCIDB_PATH=/nowhere", "PCIDB_ENABLE_NETWORK_FETCH=1", "https_proxy=http://" + proxy.Addr().String(),
			"GOCOVERDIR=" + t.TempDir(), // without it the test program itself complains
		}
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("root %s: %v, and it printed %q", root, err, out)
		}
		if files, err := os.ReadDir(home); err != nil || len(files) > 0 {
			t.Errorf("root %s: left %v in the home directory, %v", root, files, err)
		}
	}
	// Connections are accepted in order: this one must be the first.
	conn, err := net.Dial("tcp", proxy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if client := <-clients; client != conn.LocalAddr().String() {
		t.Error("it tried to fetch something")
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "inventory")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	tree := sriovtest.New(dir)
	tree.AddICE()

	inv, err := inventory.Read(dir)
	if err != nil {
		panic(err)
	}
	for _, f := range inv.Functions {
		if f.IsVF() {
			fmt.Println(f.Address, "node", f.NUMANode, "driver", f.Driver, "of", f.PF)
		}
	}
	// Output:
	// 0000:18:01.0 node 0 driver iavf of 0000:18:00.0
	// 0000:18:01.1 node 0 driver vfio-pci of 0000:18:00.0
	// 0000:18:01.2 node 0 driver  of 0000:18:00.0
	// 0000:18:01.3 node 0 driver iavf of 0000:18:00.0
}

func BenchmarkRead(b *testing.B) {
	tree := sriovtest.New(b.TempDir())
	tree.AddIGB()
	if err := tree.Err(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := inventory.Read(tree.Root()); err != nil {
			b.Fatal(err)
		}
	}
}
