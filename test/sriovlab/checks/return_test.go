//go:build sriovlab

package checks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// vfOf returns the network device of a VF's PF, and the PF's settings for the VF.
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

// change gives a VF settings that it does not have.
func change(t *testing.T, vf string) {
	t.Helper()
	link, v := vfOf(t, vf)
	if err := errors.Join(
		netlink.LinkSetVfVlanQos(link, v.ID, 100, 3), netlink.LinkSetVfSpoofchk(link, v.ID, !v.Spoofchk), netlink.LinkSetVfTrust(link, v.ID, v.Trust != 1),
	); err != nil {
		t.Fatal(err)
	}
}

// prepare gives a VF settings that a new VF does not have, until the test ends: as it
// was is not the same as new.
func prepare(t *testing.T, vf string) {
	t.Helper()
	link, was := vfOf(t, vf)
	set := func(vlan, qos int, spoofChk, trust bool) {
		t.Helper()
		if err := errors.Join(
			netlink.LinkSetVfVlanQos(link, was.ID, vlan, qos), netlink.LinkSetVfSpoofchk(link, was.ID, spoofChk), netlink.LinkSetVfTrust(link, was.ID, trust),
		); err != nil {
			t.Fatal(err)
		}
	}
	set(7, 1, false, true)
	t.Cleanup(func() { set(was.Vlan, was.Qos, was.Spoofchk, was.Trust == 1) })
}

// returnsAsItWas proves that a VF returns with the settings it had before the pod,
// whatever they were and whatever was set while the pod had it.
func returnsAsItWas(t *testing.T) {
	vf := pfs[0].vfs[3]
	prepare(t, vf)
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	for name, end := range map[string]func(n *node, p *pod){
		"namespace alive": func(*node, *pod) {},
		"namespace gone":  func(n *node, p *pod) { n.must(p.ns.Delete()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := n.of(t)
			p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			defer n.release(p)
			n.succeed("ADD", p)
			change(t, vf)
			end(n, p)
			n.succeed("DEL", p)
			n.succeed("DEL", p)
			n.before.same(t)
		})
	}
}

// warm lets a pod come and go, so that things that stay on a node forever exist, such
// as the bridge of the default network.
func (n *node) warm(network, vf string) {
	n.t.Helper()
	p := n.admit("warm", network, fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.release(p)
}

// TestReturnsWhileADelegateFails proves that a VF is returned even if a delegate
// refuses its DEL, at any place in the chain, and that the DELs of the other delegates
// still run.
func TestReturnsWhileADelegateFails(t *testing.T) {
	n := newNode(t)
	refuse := n.path("refuse")
	set := map[string]any{"type": "vfprops", "vlan": 100, "vlanQoS": 3, "spoofchk": "off", "trust": "on", "mac": "02:00:00:00:06:01", "refuse": refuse}
	mover := hostDevice(map[string]any{"ipam": n.ipam("10.62.0.0/24")})
	n.define("first", left, set, mover) // its DEL is the last
	n.define("last", left, mover, map[string]any{"type": "vfprops", "trust": "on", "refuse": refuse})
	vf := pfs[0].vfs[4]
	n.warm("first", vf)
	for _, tc := range []struct {
		network string
		gone    bool
		fails   int // how many of two DELs fail, until nothing is left for the delegate to release
	}{
		{"first", false, 0},
		{"first", true, 2},
		{"last", false, 1},
		{"last", true, 2},
	} {
		t.Run(fmt.Sprintf("%s in its chain, namespace gone %v", tc.network, tc.gone), func(t *testing.T) {
			n := n.of(t)
			vfs, state := hardware(t), n.state()
			p := n.admit("app", tc.network, fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			defer n.release(p)
			n.succeed("ADD", p)
			change(t, vf)
			n.must(os.WriteFile(refuse, nil, 0o600))
			if tc.gone {
				n.must(p.ns.Delete())
			}
			for i := range 2 {
				res := n.call("DEL", p)
				if failed := res.Error != nil && strings.Contains(res.Error.Msg, refuse); failed != (i < tc.fails) {
					t.Errorf("DEL: %s, want the delegate's error: %v", res.Stdout, i < tc.fails)
				}
				vfs.same(t)
			}
			n.must(os.Remove(refuse))
			n.succeed("DEL", p)
			n.inOrder()
			vfs.same(t)
			_ = p.ns.Delete() // it may be gone
			n.unchanged(state)
		})
	}
}

// TestDamagedJournalGivesTheVFBack proves that one sound line of a journal suffices to
// return its VF, and that without one no pod gets the VF until an administrator accepts
// it.
func TestDamagedJournalGivesTheVFBack(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(map[string]any{"ipam": n.ipam("10.63.0.0/24")}))
	vf := pfs[0].vfs[2]
	n.warm("left", vf)
	header := func(lines []string) { lines[0] = "damaged\n" }
	for _, tc := range []struct {
		name    string
		damage  func(lines []string)
		gone    bool
		verb    string
		confine bool
	}{
		{"first line, namespace alive", header, false, "DEL", false},
		{"first line, namespace gone", header, true, "DEL", false},
		{"first line, collected", header, true, "GC", false},
		{"all", func(lines []string) { clear(lines) }, false, "DEL", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := n.of(t)
			vfs, state := hardware(t), n.state()
			p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			n.succeed("ADD", p)
			change(t, vf)
			journal := n.spoil(p, tc.damage)
			next := n.again(p)
			n.refuse(next, 11, vf, journal, "may still have it")
			if tc.gone {
				n.must(p.ns.Delete())
			}
			call, sandbox := n.of(t), p
			if tc.verb == "GC" {
				call.conf(map[string]any{"cni.dev/valid-attachments": []any{}})
				sandbox = &pod{}
			}
			if res := call.call(tc.verb, sandbox); res.Error == nil || !strings.Contains(res.Error.Msg, journal+".corrupt-") {
				t.Fatalf("%s: %s, want an error about the damaged journal", tc.verb, res.Stdout)
			}
			n.succeed("DEL", p)
			if tc.confine {
				n.finds(reconcile.Quarantined, vf, "not known", "default/app")
				n.refuse(next, 116, vf, "reconcile --accept "+vf)
				n.unchange(vf)
				n.found("--accept", vf)
			}
			n.inOrder()
			n.succeed("DEL", next)
			n.release(p)
			n.must(next.ns.Delete())
			vfs.same(t)
			aside, err := filepath.Glob(journal + ".corrupt-*")
			if err != nil || len(aside) != 1 {
				t.Fatalf("journals set aside: %v (%v), want one", aside, err)
			}
			n.must(os.Remove(aside[0]))
			n.unchanged(state)
		})
	}
}

// spoil damages the lines of a pod's journal and returns its path.
func (n *node) spoil(p *pod, damage func(lines []string)) string {
	n.t.Helper()
	journal := n.path("state/" + p.ID + "@eth0.journal")
	raw, err := os.ReadFile(journal)
	n.must(err)
	lines := strings.SplitAfter(string(raw), "\n")
	damage(lines)
	n.must(os.WriteFile(journal, []byte(strings.Join(lines, "")), 0o600))
	return journal
}

// unchange takes back what [change] did to a VF that nobody uses.
func (n *node) unchange(vf string) {
	n.t.Helper()
	change(n.t, vf)
	link, v := vfOf(n.t, vf)
	n.must(netlink.LinkSetVfVlanQos(link, v.ID, 0, 0))
}

// TestTheNextOwnerIsNotTouched proves that a late DEL does not touch a VF that the
// kubelet has given to the next pod.
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
			t.Errorf("address %s is still allocated", f.Name())
		}
	}
}
