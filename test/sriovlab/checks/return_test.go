//go:build sriovlab

package checks

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// vfOf returns the PF's network device and its view of a VF.
func vfOf(t *testing.T, vf string) (netlink.Link, netlink.VfInfo) {
	t.Helper()
	f := readFunction(t, vf)
	link := linkOf(t, pfOf(vf))
	for _, v := range link.Attrs().Vfs {
		if v.ID == f.VFIndex {
			return link, v
		}
	}
	t.Fatalf("%s has no VF %d", link.Attrs().Name, f.VFIndex)
	return nil, netlink.VfInfo{}
}

// change gives a VF settings that it did not have.
func change(t *testing.T, vf string) {
	t.Helper()
	link, v := vfOf(t, vf)
	if err := errors.Join(
		netlink.LinkSetVfVlanQos(link, v.ID, 100, 3), netlink.LinkSetVfSpoofchk(link, v.ID, !v.Spoofchk), netlink.LinkSetVfTrust(link, v.ID, v.Trust != 1),
	); err != nil {
		t.Fatal(err)
	}
}

// returnsAsItWas: whatever was set on the PF while the pod had the VF.
func returnsAsItWas(t *testing.T) {
	vf := pfs[0].vfs[3]
	for name, end := range map[string]func(n *node, p *pod){
		"namespace alive": func(*node, *pod) {},
		"namespace gone":  func(n *node, p *pod) { n.must(p.ns.Delete()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.define("left", left, hostDevice(nil))
			p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			n.succeed("ADD", p)
			change(t, vf)
			end(n, p)
			n.succeed("DEL", p) // newNode compares the hardware with before
			n.succeed("DEL", p)
		})
	}
}

// TestTheNextOwnerIsNotTouched: the kubelet gave a VF on while the DEL of its last
// owner was still to come.
func TestTheNextOwnerIsNotTouched(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(map[string]any{"ipam": n.ipam("10.61.0.0/24")}))
	vf := pfs[0].vfs[5]
	last := n.admit("last", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", last)
	n.must(n.kubelet.DeletePod(types.UID(last.UID)))
	next := n.admit("next", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.refuse(next, 11, "still has it", "sandbox1@eth0", vf, "default/next")
	n.must(last.ns.Delete())
	n.eventually("the kernel to give "+vf+" back", func() bool { return len(readFunction(t, vf).NetDevs) == 1 })
	n.succeed("ADD", next)
	change(t, vf)
	_, want := vfOf(t, vf)
	n.succeed("DEL", last)
	if _, got := vfOf(t, vf); got.Vlan != want.Vlan || got.Spoofchk != want.Spoofchk || got.Trust != want.Trust {
		t.Errorf("the late DEL changed the VF: %+v, was %+v", got, want)
	}
	n.stands(next, vf)
	n.succeed("CHECK", next)
	n.succeed("DEL", next)
	addresses, err := os.ReadDir(n.path("ipam/left"))
	n.must(err)
	for _, f := range addresses {
		if f.Name() != "lock" && f.Name() != "last_reserved_ip.0" {
			t.Errorf("address %s is left", f.Name())
		}
	}
}
