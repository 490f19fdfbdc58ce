//go:build sriovlab

package checks

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// goes is the VF of the right PF that the pod has when the VFs vanish.
var goes = pfs[1].vfs[1]

// way is a way in which all VFs of a PF vanish; a single VF cannot be removed.
type way struct {
	name  string
	gone  func(p pf) error
	again bool // other VFs come in their places
	times times
}

// times are the times at which a way is tried by default, see the package comment.
type times int

const (
	beforeADD times = 1 << iota
	duringADD
	afterMove // after the device was moved, also during ADD
	afterADD
)

// ways are all the ways. A PF whose driver has been reloaded has no VFs at first.
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

// attribute writes a sysfs attribute of the PF.
func (p pf) attribute(name, value string) error {
	return os.WriteFile(filepath.Join("/sys/bus/pci/devices", p.address, name), []byte(value), 0)
}

func rescan() error { return os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0) }

// igb binds the PF to its driver, or unbinds it.
func igb(what string, p pf) error {
	return os.WriteFile("/sys/bus/pci/drivers/igb/"+what, []byte(p.address), 0)
}

// repair restores the PF and its VFs as they were when the guest booted, whatever is
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

// vanishing runs a check on a node of [newVolatile] for each way to be tried at some
// time, with a pod that has a VF of the right PF. After each check it recreates the VFs
// where the way did not.
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

// newVolatile is [newNode] for tests that destroy the right PF's VFs: it does not
// compare the hardware but recreates those VFs afterwards.
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

// refused fails unless an ADD failed with the error for a vanished VF.
func (n *node) refused(res *harness.Result, vf string, parts ...string) {
	n.t.Helper()
	n.says(res, codeVanished, append(parts, "device "+vf, "default/app", "default/right", right, fixVanished)...)
}

// leftAlone fails unless the VF that came in another's place is untouched: on the host
// and bound to its driver.
func leftAlone(t *testing.T, w way, vf string) {
	t.Helper()
	if !w.again {
		return
	}
	if got := readFunction(t, vf); got.Driver != "igbvf" || len(got.NetDevs) != 1 {
		t.Errorf("%s, which came in another's place, has driver %q and network devices %v on the host", vf, got.Driver, got.NetDevs)
	}
}

// TestVFGoneBeforeADD proves that ADD refuses a VF that vanished before it, and accepts
// a VF that came in its place: no pod has had that one.
func TestVFGoneBeforeADD(t *testing.T) {
	newVolatile(t).vanishing(beforeADD, "right", func(n *node, w way, p *pod) {
		n.vanish(w)
		if w.again { // nobody has had the new VF: it is the pod's
			n.succeed("ADD", p)
			n.stands(p, goes)
		} else {
			n.refused(n.call("ADD", p), goes, "no such device")
		}
		n.succeed("DEL", p)
		leftAlone(n.t, w, goes)
	})
}

// gated returns a plugin that does nothing, and waits in ADD until its gate is opened.
func (n *node) gated() (conf map[string]any, gate string) {
	gate = n.path("gate")
	conf = idle(nil)
	conf["script"].(map[string]any)["ADD"].(map[string]any)["gate"] = gate
	return conf, gate
}

// during runs an ADD, and calls do while a gated plugin waits in it.
func (n *node) during(p *pod, gate string, do func()) *harness.Result {
	n.t.Helper()
	n.must(errors.Join(os.RemoveAll(gate), os.RemoveAll(gate+".reached"))) // of the previous call
	var res *harness.Result
	var err error
	var call sync.WaitGroup
	call.Go(func() { res, err = n.rt.Call("ADD", p.Sandbox) })
	n.eventually("the delegate to reach its gate", func() bool {
		_, err := os.Stat(gate + ".reached")
		return err == nil
	})
	do()
	n.must(os.WriteFile(gate, nil, 0o600))
	call.Wait()
	n.must(err)
	return res
}

// TestVFGoneDuringADD proves that a VF that comes in another's place while delegates
// work is not mistaken for it, whether the change happens before or after the device is
// moved.
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

// TestVFGoneAfterADD proves what happens when the VF of a living pod vanishes: CHECK
// and the reconciler report it, a repair changes nothing, DEL succeeds although the VF
// is gone, and a VF that came in its place is left alone.
func TestVFGoneAfterADD(t *testing.T) {
	newVolatile(t).vanishing(afterADD, "right", func(n *node, w way, p *pod) {
		n.succeed("ADD", p)
		n.stands(p, goes)
		n.vanish(w)
		n.refused(n.call("CHECK", p), goes, "net1", "it left the node meanwhile")
		kind, text := reconcile.Vanished, "the node no longer has it"
		if w.again {
			kind, text = reconcile.Replaced, "PCI function: wanted the one that was handed over"
			change(n.t, goes) // as if somebody has it now
		}
		n.finds(kind, goes, text, "default/app", p.ID+"@eth0", "default/right")
		n.eventually("the running agent's Event about the pod", func() bool {
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
			n.t.Errorf("the VF that came in another's place has VLAN %d, want 100 as set since", state.Vlan)
		}
		n.unchange(goes)
	})
}

// TestVFOfAnotherPFComesBack proves that if a pod has VFs of two PFs and those of one
// PF vanish, the VF of the other PF is still returned.
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
		t.Errorf("%s came back with the name %s, want %s", kept, got, was)
	}
}
