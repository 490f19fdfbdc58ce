package sriov_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// exampleTree stands for the machine that the Examples look at.
func exampleTree(add func(*sriovtest.Tree)) (sys sriov.FS, remove func()) {
	dir, err := os.MkdirTemp("", "sriov")
	if err != nil {
		panic(err)
	}
	tree := sriovtest.New(dir)
	add(tree)
	if err := tree.Err(); err != nil {
		panic(err)
	}
	return tree.FS(), func() { os.RemoveAll(dir) }
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

// In switchdev mode the PF has representors too; its own device is the uplink.
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

	addr, err := sys.OfNetDev("enp8s0f0s88") // a subfunction's
	fmt.Println(addr, err)
	// Output: 0000:08:00.0 <nil>
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
