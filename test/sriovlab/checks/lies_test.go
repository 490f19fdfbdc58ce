//go:build sriovlab

package checks

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// mover is a plugin that moves the network device of a VF into the pod, with more
// keys.
func mover(t *testing.T, vf string, more map[string]any) map[string]any {
	t.Helper()
	conf := map[string]any{"type": "scripted", "device": linkOf(t, vf).Attrs().Name}
	for k, v := range more {
		conf[k] = v
	}
	return conf
}

// A delegate that does another thing with a VF than it was told, or claims another
// thing than it did, is found out, and what it did is undone.
func TestLiesAboutVFsAreFoundOut(t *testing.T) {
	vf, other := pfs[0].vfs[2], pfs[0].vfs[3]
	n := newNode(t)
	address := map[string]any{"addresses": []string{"10.61.0.2/24"}}
	for lie, tc := range map[string]struct {
		more  map[string]any
		parts []string
	}{
		"device":  {map[string]any{"other": linkOf(t, other).Attrs().Name}, []string{"network device " + linkOf(t, vf).Attrs().Name, "in the sandbox", "on the host"}},
		"left":    {nil, []string{"network device " + linkOf(t, vf).Attrs().Name, "in the sandbox", "on the host"}},
		"missing": {nil, []string{"ghost0", "absent"}},
		"mac":     {nil, []string{"MAC (result)", "02:00:00:00:00:99"}},
		"mtu":     {nil, []string{"MTU (result)", "9000", "1500"}},
		"address": {address, []string{"address (result)", "192.0.2.99", "10.61.0.2"}},
	} {
		t.Run(lie, func(t *testing.T) {
			conf := mover(t, vf, tc.more)
			conf["script"] = map[string]any{"ADD": map[string]any{"lie": lie}}
			n.define(lie, left, conf)
			p := n.admit(lie, lie, fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			n.of(t).refuse(p, 111, append(tc.parts, vf)...)
			n.of(t).succeed("DEL", p)
			n.evict(lie)
		})
	}
}

// of is the node in a part of a test.
func (n *node) of(t *testing.T) *node {
	m := *n
	m.t = t
	return &m
}

// A delegate that leaves a property of the VF as it is on the PF, though its
// configuration asks for another, is found out for each; once the property is as
// asked, the same configuration is accepted.
func propertiesOnThePF(t *testing.T) {
	const index = 5
	vf := pfs[0].vfs[index]
	uplink := linkOf(t, pfs[0].address)
	for key, tc := range map[string]struct {
		value     any
		field     string
		set, undo func() error
	}{
		"vlan": {100, "VLAN of the VF: wanted 100, found 0",
			func() error { return netlink.LinkSetVfVlan(uplink, index, 100) }, func() error { return netlink.LinkSetVfVlan(uplink, index, 0) }},
		"vlanQoS": {3, "VLAN QoS of the VF: wanted 3, found 0",
			func() error { return netlink.LinkSetVfVlanQos(uplink, index, 7, 3) }, func() error { return netlink.LinkSetVfVlan(uplink, index, 0) }},
		"spoofchk": {"off", "spoof check of the VF: wanted off, found on",
			func() error { return netlink.LinkSetVfSpoofchk(uplink, index, false) }, func() error { return netlink.LinkSetVfSpoofchk(uplink, index, true) }},
		"trust": {"on", "trust of the VF: wanted on, found off",
			func() error { return netlink.LinkSetVfTrust(uplink, index, true) }, func() error { return netlink.LinkSetVfTrust(uplink, index, false) }},
		"max_tx_rate": {200, "maximum rate of the VF: wanted 200, found 0",
			func() error { return netlink.LinkSetVfRate(uplink, index, 0, 200) }, func() error { return netlink.LinkSetVfRate(uplink, index, 0, 0) }},
	} {
		t.Run(key, func(t *testing.T) {
			n := newNode(t)
			n.define("asked", left, mover(t, vf, map[string]any{"type": "sriov", key: tc.value}))
			pins := fakekubelet.Pins{"c": pin(vf)}
			p := n.admit("without", "asked", pins, container("c", left))
			n.refuse(p, 111, tc.field, vf)
			n.succeed("DEL", p)
			n.evict("without")
			n.must(tc.set())
			defer func() { n.must(tc.undo()) }()
			p = n.admit("with", "asked", pins, container("c", left))
			n.succeed("ADD", p)
			n.stands(p, vf)
			n.succeed("CHECK", p)
			n.succeed("DEL", p)
		})
	}
}
