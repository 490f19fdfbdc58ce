//go:build sriovlab

package checks

import (
	"testing"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// TestVFCalledByItsNetworkDevice proves that a device plugin may advertise a VF by the
// name of its network device, although the device takes that name into the pod and
// comes back under another.
func TestVFCalledByItsNetworkDevice(t *testing.T) {
	const resource = "lab.example/named"
	vf := pfs[0].vfs[6]
	name := linkOf(t, vf).Attrs().Name
	_, was := vfOf(t, vf)
	n := newNode(t)
	n.must(n.kubelet.SetDevices(resource, fakekubelet.Device{ID: name}))
	deviceID := map[string]any{"deviceID": true}
	n.define("named", resource, mover(t, vf, map[string]any{"capabilities": deviceID}))
	n.define("tagged", resource, mover(t, vf, map[string]any{"type": "sriov", "capabilities": deviceID, "vlan": 100}))
	pins := fakekubelet.Pins{"c": {resource: {name}}}
	p := n.admit("tagged", "tagged", pins, container("c", resource))
	n.refuse(p, 111, "VLAN of the VF: wanted 100, found 0", name, vf)
	n.succeed("DEL", p)
	n.release(p)

	p = n.admit("app", "named", pins, container("c", resource))
	n.succeed("ADD", p)
	n.stands(p, vf)
	n.succeed("CHECK", p)
	next := n.again(p)
	n.refuse(next, 11, "still has it", name, vf, "default/app", "default/named")
	change(t, vf)
	n.must(p.ns.Delete())
	n.eventually("the kernel to give "+vf+" back", func() bool { return len(readFunction(t, vf).NetDevs) == 1 })
	if got := linkOf(t, vf).Attrs().Name; got == name {
		t.Fatalf("%s still has the name %s, so this test proves nothing", vf, got)
	}
	n.succeed("ADD", next) // the delegate finds the VF by its name
	if _, now := vfOf(t, vf); now.Vlan != was.Vlan || now.Spoofchk != was.Spoofchk || now.Trust != was.Trust {
		t.Errorf("the next owner got the VF with %+v, want %+v", now, was)
	}
	n.succeed("DEL", p)
	n.stands(next, vf)
	n.succeed("CHECK", next)
	change(t, vf)
	n.succeed("DEL", next)
}
