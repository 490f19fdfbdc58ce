package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// TestUserspaceDeviceIsWhatThePodWasGiven changes the VFIO device of a container
// while the pod is being attached, or later. A container gets the device as a
// device node and an IOMMU group, and both ADD and CHECK must notice every change
// to them.
func TestUserspaceDeviceIsWhatThePodWasGiven(t *testing.T) {
	const vf, file = "0000:5e:01.0", "/dev/vfio/100"
	remake := func(t *sriovtest.Tree, group string) {
		t.Remove(vf)
		t.AddVF(sriovtest.VF{PF: userspacePF, Index: 0, Address: vf, Driver: "vfio-pci", IOMMUGroup: group})
	}
	for name, tc := range map[string]struct {
		change func(n *node, tree *sriovtest.Tree)
		code   uint
		parts  []string
	}{
		"no device node": {func(n *node, _ *sriovtest.Tree) { n.must(os.Remove(file)) }, 111, []string{"device node: wanted " + file + ", found none"}},
		"a file in its place": {func(n *node, _ *sriovtest.Tree) {
			n.must(os.Remove(file))
			n.must(os.WriteFile(file, nil, 0o600))
		}, 111, []string{"device node: wanted " + file + ", found something other than a character device"}},
		"another device in its place": {func(n *node, _ *sriovtest.Tree) {
			n.must(os.Remove(file))
			n.must(os.Symlink("/dev/zero", file))
		}, 111, []string{"device node: wanted " + file + ", found character device 1:5"}},
		"the kernel's driver": {func(_ *node, tree *sriovtest.Tree) { tree.Bind(vf, "iavf") }, 111, []string{"driver: wanted vfio-pci, found iavf", "bound the device to another driver"}},
		"gone":                {func(_ *node, tree *sriovtest.Tree) { tree.Remove(vf) }, 107, []string{"this node has no such device any more", "who removed the device"}},
		"its PF gone":         {func(_ *node, tree *sriovtest.Tree) { tree.Remove(userspacePF) }, 107, []string{"this node has no such device any more"}},
		"recreated":           {func(_ *node, tree *sriovtest.Tree) { remake(tree, "100") }, 107, []string{"another function has taken its address", "PCI function: wanted the one that was handed over"}},
		"recreated in another group": {func(_ *node, tree *sriovtest.Tree) { remake(tree, "200") }, 107,
			[]string{"another function has taken its address", "IOMMU group: wanted 100, found 200"}},
	} {
		for _, verb := range []string{"ADD", "CHECK"} {
			t.Run(name+", "+verb, func(t *testing.T) {
				n := newNode(t, nil)
				n.serve()
				n.userspaceVFs(1)
				tree, gate := sriovtest.New("/run/host"), n.path("gate")
				n.define("dpdk", nicA, strings.Replace(silent, `"ADD":{`, `"ADD":{"gate":"`+gate+`",`, 1))
				p := n.addPod("app", "dpdk", "c1")
				n.allocate(p, "c1", nicA, vf)
				parts := append(tc.parts, "pod default/app network default/dpdk interface net1 resource "+nicA+" device "+vf)
				if verb == "CHECK" {
					n.file("gate", "")
					n.succeed("ADD", p)
					n.succeed("CHECK", p)
					tc.change(n, tree)
					n.refuse("CHECK", p, tc.code, parts...)
				} else {
					done := make(chan struct{})
					go func() {
						defer close(done)
						n.refuse("ADD", p, tc.code, parts...)
					}()
					n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
					tc.change(n, tree)
					n.file("gate", "")
					<-done
				}
				n.must(tree.Err())
				n.succeed("DEL", p)
			})
		}
	}
}
