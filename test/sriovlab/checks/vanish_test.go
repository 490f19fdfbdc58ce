//go:build sriovlab

package checks

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

const (
	codeVanished = 107
	fixVanished  = "delete the pod, and see who removed the device"
)

// goes is the VF that a pod has when those of the right PF vanish.
var goes = pfs[1].vfs[1]

// way is how the VFs of a PF vanish; nobody can take a single one away.
type way struct {
	name  string
	gone  func(p pf) error
	again bool // others come in their places
	times times
}

// times are those at which a way is tried by default, see the package comment.
type times int

const (
	beforeADD times = 1 << iota
	duringADD
	afterMove // of the device, also during ADD
	afterADD
)

// ways are all of them. A PF whose driver is loaded anew has no VFs at first.
var ways = []way{
	{"sriov_numvfs", func(p pf) error { return p.attribute("sriov_numvfs", "0") }, false, beforeADD},
	{"sriov_numvfs twice", pf.renew, true, duringADD | afterMove | afterADD},
	{"PF removed", func(p pf) error { return p.attribute("remove", "1") }, false, duringADD | afterADD},
	{"PF removed and found again", func(p pf) error {
		return errors.Join(p.attribute("remove", "1"), rescan(), p.renew())
	}, true, beforeADD},
	{"PF's driver unbound", func(p pf) error { return igb("unbind", p) }, false, afterADD},
	{"PF's driver bound anew", func(p pf) error { return errors.Join(igb("unbind", p), igb("bind", p)) }, false, beforeADD},
	{"PF's driver and VFs anew", func(p pf) error { return errors.Join(igb("unbind", p), igb("bind", p), p.renew()) }, true, duringADD},
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

// vanishing runs a check on a node of [newVolatile] for each way in which the VFs of
// the right PF can vanish at some time, with a pod that has one of them. After each
// they are made anew where that is not done yet.
func (n *node) vanishing(at times, network string, check func(n *node, w way, p *pod)) {
	for _, w := range ways {
		if w.times&at == 0 && os.Getenv(FullVariable) != "true" {
			continue
		}
		n.t.Run(w.name, func(t *testing.T) {
			n := n.of(t)
			n.api.DeleteEvents()
			p := n.admit("app", network, fakekubelet.Pins{"c": pin(goes)}, container("c", right))
			defer func() {
				n.release(p)
				if !w.again || t.Failed() {
					n.must(pfs[1].repair())
				}
			}()
			check(n, w, p)
			n.inOrder()
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
	n.define("right", right, hostDevice(nil))
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
	newVolatile(t).vanishing(beforeADD, "right", func(n *node, w way, p *pod) {
		n.vanish(w)
		if w.again { // nobody has had it: it is the pod's
			n.succeed("ADD", p)
			n.stands(p, goes)
		} else {
			n.refused(n.call("ADD", p), goes, "no such device")
		}
		n.succeed("DEL", p)
		leftAlone(n.t, w, goes)
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
	n.must(errors.Join(os.RemoveAll(gate), os.RemoveAll(gate+".reached"))) // of the one before
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
	n := newVolatile(t)
	gated, gate := n.gated()
	n.define("first", right, gated, hostDevice(nil))
	n.define("last", right, hostDevice(nil), gated)
	for name, at := range map[string]times{"first": duringADD, "last": afterMove} {
		t.Run(name+" in its chain", func(t *testing.T) {
			n.of(t).vanishing(at, name, func(n *node, w way, p *pod) {
				res := n.during(p, gate, func() { n.vanish(w) })
				n.says(res, codeVanished, "it left the node meanwhile", "device "+goes, "default/app", "default/"+name, right, fixVanished)
				leftAlone(n.t, w, goes)
				n.succeed("DEL", p)
			})
		})
	}
}

// The VF of a living pod goes: CHECK and the reconciler say so, nothing is repaired,
// DEL does not fail for ever on what is no more, and leaves alone what came in its
// place.
func TestVFGoneAfterADD(t *testing.T) {
	newVolatile(t).vanishing(afterADD, "right", func(n *node, w way, p *pod) {
		n.succeed("ADD", p)
		n.stands(p, goes)
		n.vanish(w)
		n.refused(n.call("CHECK", p), goes, "net1", "it left the node meanwhile")
		kind, text := reconcile.Vanished, "the node does not have it any more"
		if w.again {
			kind, text = reconcile.Replaced, "PCI function: wanted the one that was handed over"
			change(n.t, goes) // by somebody who has it now, for all that a repair knows
		}
		n.finds(kind, goes, text, "default/app", p.ID+"@eth0", "default/right")
		n.eventually("the running agent to say so in an Event about the pod", func() bool {
			return slices.ContainsFunc(n.api.Events(), func(e corev1.Event) bool {
				return e.Reason == reconcile.Reason(kind) && string(e.InvolvedObject.UID) == p.UID && strings.Contains(e.Message, goes)
			})
		})
		list := n.found("--repair")
		if len(list) != 1 || list[0].Kind != kind {
			n.t.Errorf("after a repair found %v, want %s as before", list, kind)
		}
		n.succeed("DEL", p)
		leftAlone(n.t, w, goes)
		if !w.again {
			return
		}
		if _, state := vfOf(n.t, goes); state.Vlan != 100 {
			n.t.Errorf("VLAN %d of the VF that came in another's place, want 100 as somebody set it", state.Vlan)
		}
		n.unchange(goes)
	})
}

// The VFs of one PF go while a pod holds one of them and one of another PF: that one
// comes back.
func TestVFOfAnotherPFComesBack(t *testing.T) {
	kept := pfs[0].vfs[1]
	n := newVolatile(t)
	n.define("left", left, hostDevice(nil))
	was := linkOf(t, kept).Attrs().Name
	p := n.admit("app", "right,left", fakekubelet.Pins{"c": pin(goes, kept)}, container("c", right, left))
	n.succeed("ADD", p)
	n.stands(p, goes, kept)
	n.vanish(ways[0])
	n.succeed("DEL", p)
	if got := linkOf(t, kept).Attrs().Name; got != was {
		t.Errorf("%s came back as %s, was %s", kept, got, was)
	}
}
