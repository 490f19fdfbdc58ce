//go:build sriovlab

package checks

import (
	"encoding/json"
	"maps"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// conf sets keys of the plugin's configuration.
func (n *node) conf(keys map[string]any) {
	n.t.Helper()
	var conf map[string]any
	n.must(json.Unmarshal(n.rt.Conf, &conf))
	maps.Copy(conf, keys)
	raw, err := json.Marshal(conf)
	n.must(err)
	n.rt.Conf = raw
}

// event returns the first Event about pods, and waits for it.
func (n *node) event() corev1.Event {
	n.t.Helper()
	n.eventually("the Event", func() bool { return len(n.api.Events()) > 0 })
	return n.api.Events()[0]
}

// TestVFWithoutCarrier proves that a VF without carrier, because its PF has no link, is
// treated as the carrier policy says, and that DEL works.
func TestVFWithoutCarrier(t *testing.T) {
	const finding = "carrier: wanted one, found none, though the interface is up"
	vf := pfs[0].vfs[4]
	uplink := linkOf(t, pfs[0].address)
	for policy, tc := range map[string]struct{ attached, reported bool }{
		"warn": {true, true}, "require": {false, true}, "ignore": {true, false},
	} {
		t.Run(policy, func(t *testing.T) {
			n := newNode(t)
			n.conf(map[string]any{"carrier": policy})
			n.define("left", left, hostDevice(nil))
			p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			n.must(netlink.LinkSetDown(uplink))
			defer n.link(pfs[0])
			if tc.attached {
				n.succeed("ADD", p)
				n.stands(p, vf)
			} else {
				n.refuse(p, 111, finding, vf, "check the link of the device's port")
			}
			if ev := n.event(); tc.reported != (ev.Type == corev1.EventTypeWarning && strings.Contains(ev.Message, finding)) {
				t.Errorf("Event %s %q, want finding reported: %v", ev.Type, ev.Message, tc.reported)
			}
			n.succeed("DEL", p)
		})
	}
}

// TestCarrierOfAVFIsWaitedFor proves that ADD waits until a VF and its PF agree on the
// link.
func TestCarrierOfAVFIsWaitedFor(t *testing.T) {
	n := newNode(t)
	n.conf(map[string]any{"carrier": "require", "carrierTimeout": "1m"})
	n.define("left", left, hostDevice(nil))
	vf := pfs[0].vfs[4]
	p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.must(netlink.LinkSetDown(linkOf(t, pfs[0].address)))
	add := n.rt.Command("ADD", p.Sandbox)
	n.must(add.Start())
	n.eventually("the interface in the pod to be up", func() bool {
		link, err := p.ns.Link("net1")
		n.must(err)
		return link != nil && link.Attrs().Flags&net.FlagUp != 0
	})
	n.link(pfs[0])
	if err := add.Wait(); err != nil {
		t.Errorf("ADD: %v", err)
	}
	if ev := n.event(); ev.Type != corev1.EventTypeNormal {
		t.Errorf("Event %s %q, want type Normal", ev.Type, ev.Message)
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}

// TestInterfaceLeftDown proves that ADD refuses an interface that the delegate leaves
// down.
func TestInterfaceLeftDown(t *testing.T) {
	n := newNode(t)
	n.conf(map[string]any{"carrier": "require"})
	vf := pfs[0].vfs[4]
	conf := mover(t, vf, nil)
	conf["script"] = map[string]any{"ADD": map[string]any{"lie": "down"}}
	n.define("down", left, conf)
	p := n.admit("app", "down", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.refuse(p, 111, "carrier: wanted one, found none, since the interface is down", vf)
	n.succeed("DEL", p)
}

// TestInterfaceLeftDownWhereEnableIsAsked proves that, when the link state should be
// "enable" whatever the wire says, an interface left down is refused under every
// carrier policy. ADD also finds that the igb cannot set the VF's link state.
func TestInterfaceLeftDownWhereEnableIsAsked(t *testing.T) {
	n := newNode(t)
	n.conf(map[string]any{"carrier": "ignore"})
	vf := pfs[0].vfs[4]
	conf := mover(t, vf, map[string]any{"type": "sriov", "link_state": "enable"})
	conf["script"] = map[string]any{"ADD": map[string]any{"lie": "down"}}
	n.define("down", left, conf)
	p := n.admit("app", "down", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.refuse(p, 111, "administrative state: wanted up, found down", "link state of the VF: wanted enable, found auto", vf)
	n.succeed("DEL", p)
}

// link brings a PF up and waits until it has its link.
func (n *node) link(p pf) {
	n.t.Helper()
	n.must(netlink.LinkSetUp(linkOf(n.t, p.address)))
	n.eventually("the PF's link to be up", func() bool {
		return linkOf(n.t, p.address).Attrs().OperState == netlink.OperUp
	})
}
