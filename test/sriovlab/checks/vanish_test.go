//go:build sriovlab

package checks

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

const (
	codeVanished = 107
	fixVanished  = "delete the pod, and see who removed the device"
)

// way is how the VFs of a PF vanish; nobody can take a single one away.
type way struct {
	name  string
	gone  func(p pf) error
	again bool // others come in their places
}

// ways are all of them. A PF whose driver is loaded anew has no VFs at first.
var ways = []way{
	{"sriov_numvfs", func(p pf) error { return p.attribute("sriov_numvfs", "0") }, false},
	{"sriov_numvfs twice", pf.renew, true},
	{"PF removed", func(p pf) error { return p.attribute("remove", "1") }, false},
	{"PF removed and found again", func(p pf) error {
		return errors.Join(p.attribute("remove", "1"), rescan(), p.renew())
	}, true},
	{"PF's driver unbound", func(p pf) error { return igb("unbind", p) }, false},
	{"PF's driver bound anew", func(p pf) error { return errors.Join(igb("unbind", p), igb("bind", p)) }, false},
	{"PF's driver and VFs anew", func(p pf) error { return errors.Join(igb("unbind", p), igb("bind", p), p.renew()) }, true},
}

// attribute writes an attribute of the PF.
func (p pf) attribute(name, value string) error {
	return os.WriteFile(filepath.Join("/sys/bus/pci/devices", p.address, name), []byte(value), 0)
}

func rescan() error { return os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0) }

// igb binds the PF to its driver, or unbinds it.
func igb(what string, p pf) error {
	return os.WriteFile("/sys/bus/pci/drivers/igb/"+what, []byte(p.address), 0)
}

// repair makes the PF and its VFs as they were when the guest booted, whatever is
// missing.
func (p pf) repair() error {
	if _, err := os.Stat(filepath.Join("/sys/bus/pci/devices", p.address)); err != nil {
		if err := rescan(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join("/sys/bus/pci/devices", p.address, "driver")); err != nil {
		if err := igb("bind", p); err != nil {
			return err
		}
	}
	return p.renew()
}

// vanish makes the VFs of the right PF vanish.
func (n *node) vanish(w way) {
	n.t.Helper()
	if err := w.gone(pfs[1]); err != nil {
		n.t.Fatalf("%s: %v", w.name, err)
	}
}

// vanishing runs a check for each of some ways in which a VF of the right PF, of
// which the node has a network, can vanish. What comes in its place is not compared with what
// was before.
func vanishing(t *testing.T, ways []way, check func(n *node, w way)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			n := newVolatile(t)
			n.define("right", right, hostDevice(nil))
			check(n, w)
		})
	}
}

// newVolatile is newNode where what becomes of the right PF's VFs is not compared:
// afterwards they are made anew.
func newVolatile(t *testing.T) *node {
	t.Helper()
	t.Cleanup(func() {
		if err := pfs[1].repair(); err != nil {
			t.Fatal(err)
		}
	})
	n := newNode(t)
	n.before = nil
	return n
}

// refused fails unless an ADD failed with the error for a VF that vanished.
func (n *node) refused(res *harness.Result, vf string, parts ...string) {
	n.t.Helper()
	n.says(res, codeVanished, append(parts, "device "+vf, "default/app", "default/right", right, fixVanished)...)
}

// leftAlone fails unless the VF that came in another's place is as it was made: on
// the host, at its driver, with no VLAN.
func leftAlone(t *testing.T, w way, vf string) {
	t.Helper()
	if !w.again {
		return
	}
	if got := readFunction(t, vf); got.Driver != "igbvf" || len(got.NetDevs) != 1 {
		t.Errorf("%s, which came in another's place, is at driver %q with network devices %v on the host", vf, got.Driver, got.NetDevs)
	}
}

func TestVFGoneBeforeADD(t *testing.T) {
	vf := pfs[1].vfs[1]
	vanishing(t, ways, func(n *node, w way) {
		p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
		n.vanish(w)
		if w.again { // nobody has had it: it is the pod's
			n.succeed("ADD", p)
			n.stands(p, vf)
		} else {
			n.refused(n.call("ADD", p), vf, "no such device")
		}
		n.inOrder()
		n.succeed("DEL", p)
		leftAlone(n.t, w, vf)
	})
}

// gated is a plugin that does nothing, once its gate is opened.
func (n *node) gated() (conf map[string]any, gate string) {
	gate = n.path("gate")
	conf = idle(nil)
	conf["script"].(map[string]any)["ADD"].(map[string]any)["gate"] = gate
	return conf, gate
}

// during runs an ADD, and something else while a gated plugin runs in it.
func (n *node) during(p *pod, gate string, do func()) *harness.Result {
	n.t.Helper()
	done := make(chan *harness.Result, 1)
	go func() { done <- n.call("ADD", p) }()
	n.eventually("the delegate", func() bool {
		_, err := os.Stat(gate + ".reached")
		return err == nil
	})
	do()
	n.must(os.WriteFile(gate, nil, 0o600))
	return <-done
}

// The VF goes while delegates work on it: what came in its place is not taken for
// it, whether it is there when the device is moved or comes later.
func TestVFGoneDuringADD(t *testing.T) {
	vf := pfs[1].vfs[1]
	for order, tc := range map[string]struct {
		ways  []way
		chain func(gated map[string]any) []map[string]any
	}{
		"before it is moved": {ways, func(gated map[string]any) []map[string]any { return []map[string]any{gated, hostDevice(nil)} }},
		"after it was moved": {ways[:2], func(gated map[string]any) []map[string]any { return []map[string]any{hostDevice(nil), gated} }},
	} {
		t.Run(order, func(t *testing.T) {
			vanishing(t, tc.ways, func(n *node, w way) {
				gated, gate := n.gated()
				n.define("right", right, tc.chain(gated)...)
				p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
				n.refused(n.during(p, gate, func() { n.vanish(w) }), vf, "it left the node meanwhile")
				leftAlone(n.t, w, vf)
				n.succeed("DEL", p)
				n.inOrder()
			})
		})
	}
}

// The VF of a living pod goes: CHECK and the reconciler say so, nothing is repaired,
// DEL does not fail for ever on what is no more, and leaves alone what came in its
// place.
func TestVFGoneAfterADD(t *testing.T) {
	vf := pfs[1].vfs[1]
	vanishing(t, ways, func(n *node, w way) {
		p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
		n.succeed("ADD", p)
		n.stands(p, vf)
		n.inOrder()
		n.vanish(w)
		n.refused(n.call("CHECK", p), vf, "net1", "it left the node meanwhile")
		kind, text := reconcile.Vanished, "the node does not have it any more"
		if w.again {
			kind, text = reconcile.Replaced, "PCI function: wanted the one that was handed over"
			change(n.t, vf) // by somebody who has it now, for all that a repair knows
		}
		n.finds(kind, vf, text, "default/app", p.ID+"@eth0", "default/right")
		n.eventually("the running agent to say so in an Event about the pod", func() bool {
			for _, e := range n.api.Events() {
				if e.Reason == reconcile.Reason(kind) && e.InvolvedObject.Name == "app" && strings.Contains(e.Message, vf) {
					return true
				}
			}
			return false
		})
		list := n.found("--repair")
		if len(list) != 1 || list[0].Kind != kind {
			n.t.Errorf("after a repair found %v, want %s as before", list, kind)
		}
		n.succeed("DEL", p)
		leftAlone(n.t, w, vf)
		if _, state := lookUp(n.t, vf); w.again && state.Vlan != 100 {
			n.t.Errorf("VLAN %d of the VF that came in another's place, want 100 as somebody set it", state.Vlan)
		}
	})
}

// The VFs of one PF go while a pod holds one of them and one of another PF: that one
// comes back.
func TestVFOfAnotherPFComesBack(t *testing.T) {
	vf, kept := pfs[1].vfs[1], pfs[0].vfs[1]
	vanishing(t, ways[:1], func(n *node, w way) {
		n.define("left", left, hostDevice(nil))
		before := linkOf(n.t, kept).Attrs().Name
		p := n.admit("app", "right,left", fakekubelet.Pins{"c": pin(vf, kept)}, container("c", right, left))
		n.succeed("ADD", p)
		n.stands(p, vf, kept)
		n.vanish(w)
		n.succeed("DEL", p)
		if got := linkOf(n.t, kept).Attrs().Name; got != before {
			n.t.Errorf("%s came back as %s, was %s", kept, got, before)
		}
	})
}

// lookUp is vfOf for a VF that may be gone.
func lookUp(t *testing.T, vf string) (netlink.Link, netlink.VfInfo) {
	t.Helper()
	if _, err := os.Stat(filepath.Join("/sys/bus/pci/devices", vf)); err != nil {
		return nil, netlink.VfInfo{}
	}
	return vfOf(t, vf)
}
