package sriov_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// exampleTree returns the machine that the examples look at.
func exampleTree(add func(*sriovtest.Tree)) (sys sriov.FS, remove func()) {
	host, remove := exampleHost(add)
	return host.FS, remove
}

// exampleHost returns the same machine with its network devices.
func exampleHost(add func(*sriovtest.Tree)) (host sriov.Host, remove func()) {
	dir, err := os.MkdirTemp("", "sriov")
	if err != nil {
		panic(err)
	}
	tree := sriovtest.New(dir)
	add(tree)
	if err := tree.Err(); err != nil {
		panic(err)
	}
	return tree.Host(), func() { os.RemoveAll(dir) }
}

// The life of a VF: it is found, recorded, lent out, and restored.
func Example() {
	host, remove := exampleHost((*sriovtest.Tree).AddIGB)
	defer remove()

	const addr = "0000:21:10.4" // allocated by a device plugin
	pf, index, err := host.PFNetDev(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("it is VF", index, "of", pf)
	before, err := host.Snapshot(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	// The user of the VF sets what it needs.
	if err := host.SetVF(pf, index, sriov.PropertyTrust, sriov.VFState{Trust: true}); err != nil {
		fmt.Println(err)
		return
	}
	// The VF comes back, which may take the kernel some time.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now, err := host.Wait(ctx, addr, sriov.HasNetDev)
	if err != nil {
		fmt.Println(err)
		return
	}
	if !before.SameFunction(now) {
		fmt.Println("the VF was created again meanwhile: there is nothing to undo")
		return
	}
	changed, err := host.Reset(addr, before)
	fmt.Println("undone:", sriov.Sentences(changed), err)
	// Output:
	// it is VF 2 of enp33s0
	// undone: trust of the VF: wanted off, found on <nil>
}

func ExampleFS_Function() {
	sys, remove := exampleTree((*sriovtest.Tree).AddIGB)
	defer remove()

	f, err := sys.Function("0000:41:10.2")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("VF", f.VFIndex, "of", f.PF, "on NUMA node", f.NUMANode, "is", f.NetDevs)

	_, err = sys.Function("0000:99:00.0")
	fmt.Println("unplugged:", errors.Is(err, fs.ErrNotExist))
	// Output:
	// VF 1 of 0000:41:00.0 on NUMA node 1 is [enp65s16f2]
	// unplugged: true
}

// Some device plugins identify a VF by its network device.
func ExampleFS_FunctionNamed() {
	sys, remove := exampleTree((*sriovtest.Tree).AddIGB)
	defer remove()

	for _, id := range []string{"0000:21:10.4", "enp33s16f4", "enp33s0"} {
		f, err := sys.FunctionNamed(id)
		if err != nil {
			fmt.Println(id, "is not a VF:", errors.Is(err, sriov.ErrNotVF))
			continue
		}
		fmt.Println(id, "is", f.Address)
	}
	// Output:
	// 0000:21:10.4 is 0000:21:10.4
	// enp33s16f4 is 0000:21:10.4
	// enp33s0 is not a VF: true
}

// A VF without a network device may be useful as it is, or have its network device in
// another network namespace.
func ExampleFS_NeedsNetDev() {
	sys, remove := exampleTree((*sriovtest.Tree).AddICE)
	defer remove()

	for _, addr := range []string{"0000:18:01.1", "0000:18:01.2", "0000:18:01.3"} {
		f, err := sys.Function(addr)
		if err != nil {
			fmt.Println(err)
			return
		}
		needed, err := sys.NeedsNetDev(addr)
		fmt.Printf("%s driver %q has %d network devices, needs one: %t %v\n", addr, f.Driver, len(f.NetDevs), needed, err)
	}
	// Output:
	// 0000:18:01.1 driver "vfio-pci" has 0 network devices, needs one: false <nil>
	// 0000:18:01.2 driver "" has 0 network devices, needs one: true <nil>
	// 0000:18:01.3 driver "iavf" has 0 network devices, needs one: true <nil>
}

// Of an InfiniBand network device's address only the GUID identifies the device; the
// driver generates the rest.
func ExampleSameMAC() {
	const before, after = "00:00:10:2a:fe:80:00:00:00:00:00:00:b8:59:9f:03:00:a4:3e:7c", "00:00:11:07:fe:80:00:00:00:00:00:00:b8:59:9f:03:00:a4:3e:7c"
	fmt.Println(sriov.SameMAC(before, after), sriov.SameMAC("02:00:00:00:00:01", "02:00:00:00:00:02"))
	// Output: true false
}

// A VF that a userspace program drives has a device node instead of a network device.
func ExampleFS_VFIONode() {
	sys, remove := exampleTree((*sriovtest.Tree).AddICE)
	defer remove()

	f, err := sys.Function("0000:18:01.1")
	if err != nil {
		fmt.Println(err)
		return
	}
	node, err := sys.VFIONode(*f)
	fmt.Println("driver", f.Driver, "group", f.IOMMUGroup, "node", node, err)
	// Output: driver vfio-pci group 83 node /dev/vfio/83 <nil>
}

// In switchdev mode the PF also has representors; its own network device is the uplink.
func ExampleFS_PFNetDev() {
	sys, remove := exampleTree((*sriovtest.Tree).AddSwitchdev)
	defer remove()

	name, index, err := sys.PFNetDev("0000:08:00.3")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("ip link show %s: vf %d\n", name, index)
	// Output: ip link show enp8s0f0np0: vf 1
}

func ExampleFS_OfNetDev() {
	sys, remove := exampleTree((*sriovtest.Tree).AddSwitchdev)
	defer remove()

	addr, err := sys.OfNetDev("enp8s0f0s88") // belongs to a subfunction
	fmt.Println(addr, err)
	// Output: 0000:08:00.0 <nil>
}

// In switchdev mode a PF has representors besides its own network device.
func ExampleFS_Uplink() {
	sys, remove := exampleTree((*sriovtest.Tree).AddSwitchdev)
	defer remove()

	pf, err := sys.Function("0000:08:00.0")
	if err != nil {
		fmt.Println(err)
		return
	}
	uplink, err := sys.Uplink(pf.Address)
	fmt.Println(uplink, "of", pf.NetDevs, err)
	// Output: enp8s0f0np0 of [en8f0pf0sf88 enp8s0f0_0 enp8s0f0_1 enp8s0f0np0] <nil>
}

// A subfunction has no PCI address of its own.
func ExampleFS_Auxiliary() {
	sys, remove := exampleTree((*sriovtest.Tree).AddSwitchdev)
	defer remove()

	sf, err := sys.Auxiliary("mlx5_core.sf.2")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("subfunction", sf.SFNum, "of", sf.Parent, "is", sf.NetDevs)
	// Output: subfunction 88 of 0000:08:00.0 is [enp8s0f0s88]
}

// All VFs of a PF cost one query to its driver.
func ExampleHost_Snapshots() {
	host, remove := exampleHost((*sriovtest.Tree).AddIGB)
	defer remove()

	pf, err := host.Function("0000:21:00.0")
	if err != nil {
		fmt.Println(err)
		return
	}
	var vfs []sriov.Function
	for _, addr := range pf.VFs {
		vf, err := host.Function(addr)
		if err != nil {
			fmt.Println(err)
			return
		}
		vfs = append(vfs, *vf)
	}
	states, err := host.Snapshots(vfs)
	fmt.Println(len(states), "VFs, the first with VLAN", states[pf.VFs[0]].VF.VLAN, err)
	// Output: 7 VFs, the first with VLAN 0 <nil>
}

// Without an earlier snapshot, comparison with an unused VF shows what somebody left on
// a VF.
func ExampleSnapshot_Neutral() {
	host, remove := exampleHost((*sriovtest.Tree).AddIGB)
	defer remove()

	if err := host.SetVF("enp33s0", 2, sriov.PropertyVLAN, sriov.VFState{VLAN: 77, VLANProto: "802.1q"}); err != nil {
		fmt.Println(err)
		return
	}
	now, err := host.Snapshot("0000:21:10.4")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(sriov.Sentences(now.Neutral().Compare(now)))
	// Output: VLAN of the VF: wanted 0, found 77
}

// A VF that was removed and created again has its old address, but is a different VF.
func ExampleSnapshot_SameFunction() {
	var tree *sriovtest.Tree
	host, remove := exampleHost(func(t *sriovtest.Tree) {
		t.AddIGB()
		tree = t
	})
	defer remove()

	const vf = "0000:21:10.4"
	before, err := host.Snapshot(vf)
	if err != nil {
		fmt.Println(err)
		return
	}
	tree.RemoveVFs("0000:21:00.0") // as by writing sriov_numvfs
	tree.AddVF(sriovtest.VF{PF: "0000:21:00.0", Index: 2, Address: vf, Driver: "igbvf"})
	now, err := host.Snapshot(vf)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = host.Reset(vf, before)
	fmt.Println(before.SameFunction(now), errors.Is(err, sriov.ErrReplaced))
	// Output: false true
}

func ExampleCompareIDs() {
	ids := []string{"eth10", "0000:a1:00.0", "10000:01:00.0", "eth2", "0000:21:10.2"}
	slices.SortFunc(ids, sriov.CompareIDs)
	fmt.Println(ids)
	// Output: [0000:21:10.2 0000:a1:00.0 10000:01:00.0 eth2 eth10]
}

func ExampleParseAddress() {
	for _, s := range []string{"0000:3B:02.1", "3b:02.1", "../0000:3b:02.1"} {
		fmt.Println(sriov.ParseAddress(s))
	}
	// Output:
	// 0000:3b:02.1 <nil>
	//  "3b:02.1": not a PCI address, want dddd:bb:dd.f
	//  "../0000:3b:02.1": not a PCI address, want dddd:bb:dd.f
}

// A VF is recorded before use and restored afterwards.
func ExampleHost_Reset() {
	host, remove := exampleHost((*sriovtest.Tree).AddIGB)
	defer remove()

	const vf = "0000:21:10.4"
	before, err := host.Snapshot(vf)
	if err != nil {
		fmt.Println(err)
		return
	}
	used := sriov.VFState{VLAN: 100, VLANQoS: 3, VLANProto: "802.1q"}
	if err := host.SetVF(before.PF, before.VFIndex, sriov.PropertyVLAN, used); err != nil {
		fmt.Println(err)
		return
	}
	changed, err := host.Reset(vf, before)
	for _, d := range changed {
		fmt.Println(d)
	}
	fmt.Println(err)
	// Output:
	// VLAN of the VF: wanted 0, found 100
	// VLAN QoS of the VF: wanted 0, found 3
	// <nil>
}

// The kernel returns a network device some time after its network namespace was
// deleted.
func ExampleHost_Wait() {
	var tree *sriovtest.Tree
	host, remove := exampleHost(func(t *sriovtest.Tree) {
		t.AddIGB()
		t.RemoveNetDev("enp33s16f4")
		tree = t
	})
	defer remove()

	go tree.AddNetDev("0000:21:10.4", sriovtest.NetDev{Name: "enp33s16f4"})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := host.Wait(ctx, "0000:21:10.4", sriov.HasNetDev)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.NetDevs[0].Name, "is back")
	// Output: enp33s16f4 is back
}

// Compare shows how the PF's state for a VF differs from the wanted state.
func ExampleSnapshot_Compare() {
	host, remove := exampleHost((*sriovtest.Tree).AddIGB)
	defer remove()

	now, err := host.Snapshot("0000:21:10.4")
	if err != nil {
		fmt.Println(err)
		return
	}
	want := *now
	want.VF = &sriov.VFState{MAC: now.VF.MAC, VLAN: 100, VLANProto: "802.1q", Trust: true, LinkState: "auto"}
	fmt.Println(sriov.Sentences(want.Compare(now)))
	// Output: VLAN of the VF: wanted 100, found 0, spoof check of the VF: wanted off, found on, trust of the VF: wanted on, found off
}
