package e2e

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/journal"
)

// wire sets the other end of a device up or down, as if its cable were plugged in
// or pulled.
func (n *node) wire(device string, in bool) {
	n.t.Helper()
	set := netlink.LinkSetDown
	if in {
		set = netlink.LinkSetUp
	}
	peer, err := netlinksafe.LinkByName("p-" + device)
	n.must(err)
	n.must(set(peer))
}

// listeners counts the netlink sockets in the sandbox that subscribe to any group
// of notifications.
func (n *node) listeners(p *pod) (count int) {
	n.t.Helper()
	n.must(p.ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(text)) {
			// sk Eth Pid Groups …
			if f := strings.Fields(line); len(f) > 3 && f[1] == "0" && f[3] != "00000000" {
				count++
			}
		}
		return err
	}))
	return count
}

// differs returns the differences of attachment i that were tolerated, from the
// journal, which the pod's status is read from as well.
func (n *node) differs(p *pod, i int) (out []string) {
	n.t.Helper()
	entry, err := journal.Dir{Path: n.path("state")}.Open(journal.Key{ContainerID: p.ID, IfName: "eth0"})
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was refused
	}
	n.must(err)
	for _, s := range entry.Steps {
		if s.Attachment == i && s.Phase == journal.Verified {
			out = s.Differs
		}
	}
	return out
}

// TestCarrierPolicies proves that the interface of a device without carrier is
// treated as configured.
func TestCarrierPolicies(t *testing.T) {
	const finding = "carrier: wanted one, found none, though the interface is up"
	for policy, tc := range map[string]struct{ attached, reported bool }{
		"warn": {true, true}, "require": {false, true}, "ignore": {true, false},
	} {
		t.Run(policy, func(t *testing.T) {
			n := newStatusNode(t)
			n.withConf(map[string]any{"carrier": policy, "carrierTimeout": "50ms"})
			definition(n.api, "nic-a", nicA, hostDevice)
			n.devices("nic0")
			p := n.apiPod(n.api, "app", "nic-a", container("c1", 1))
			n.wire("nic0", false)
			res := n.call("ADD", p)
			if attached := res.Status == 0; attached != tc.attached {
				t.Fatalf("attached %v, want %v: %s", attached, tc.attached, res.Stdout)
			}
			if !tc.attached && (res.Error.Code != 111 || !strings.Contains(res.Error.Msg, finding) || !strings.Contains(res.Error.Msg, "check the link of the device's port")) {
				t.Errorf("refused with code %d: %s", res.Error.Code, res.Error.Msg)
			}
			if logged := strings.Contains(string(res.Stderr), finding); logged != tc.reported {
				t.Errorf("logged %v, want %v: %s", logged, tc.reported, res.Stderr)
			}
			n.eventually("the event", func() bool { return len(n.api.Events()) > 0 })
			ev := n.api.Events()[0]
			if told := ev.Type == corev1.EventTypeWarning && strings.Contains(ev.Message, finding); told != tc.reported {
				t.Errorf("event %s %q, want it reported: %v", ev.Type, ev.Message, tc.reported)
			}
			if recorded := slices.Contains(n.differs(p, 1), finding); recorded != (tc.attached && tc.reported) {
				t.Errorf("recorded as differing: %v", recorded)
			}
			n.succeed("DEL", p)
			n.onHost("nic0")
		})
	}
}

// TestCarrierIsWaitedFor proves that a carrier that appears during the wait is
// enough, and that CHECK finds one that is lost later.
func TestCarrierIsWaitedFor(t *testing.T) {
	n := newNode(t, map[string]any{"carrier": "require", "carrierTimeout": "1m"})
	n.serve()
	n.warm()
	id := n.device("nic0")
	n.wire("nic0", false)
	n.define("nic-a", nicA, hostDevice)
	p := n.addPod("app", "nic-a", "c1")
	n.allocate(p, "c1", nicA, id)
	add := n.rt.Command("ADD", p.Sandbox)
	n.must(add.Start())
	n.eventually("ADD to listen for changes of links in the sandbox", func() bool { return n.listeners(p) > 0 })
	n.wire("nic0", true)
	if err := add.Wait(); err != nil {
		t.Fatalf("ADD: %v", err)
	}
	n.succeed("CHECK", p)
	n.withConf(map[string]any{"carrierTimeout": "50ms"})
	n.wire("nic0", false)
	n.refuse("CHECK", p, 111, "carrier", "device "+id)
	n.succeed("DEL", p)
}
