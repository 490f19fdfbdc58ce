//go:build sriovlab

package checks

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// mover returns a plugin that moves a VF's network device into the pod, with additional
// keys.
func mover(t *testing.T, vf string, more map[string]any) map[string]any {
	t.Helper()
	conf := map[string]any{"type": "scripted", "device": linkOf(t, vf).Attrs().Name}
	for k, v := range more {
		conf[k] = v
	}
	return conf
}

// TestLiesAboutVFsAreFoundOut proves that ADD refuses a delegate that does something
// else with a VF than asked, or claims something else than it did, and undoes what the
// delegate did.
func TestLiesAboutVFsAreFoundOut(t *testing.T) {
	vf, other, vfio := pfs[0].vfs[2], pfs[0].vfs[3], pfs[1].vfs[4]
	toVFIO(t, vfio)
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
		"renamed": {nil, []string{"interface net1", "present", "absent"}},
		"address": {address, []string{"address (result)", "192.0.2.99", "10.61.0.2"}},
	} {
		t.Run(lie, func(t *testing.T) {
			conf := mover(t, vf, tc.more)
			conf["script"] = map[string]any{"ADD": map[string]any{"lie": lie}}
			n.define(lie, left, conf)
			p := n.admit(lie, lie, fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			n.of(t).refuse(p, 111, append(tc.parts, vf)...)
			n.release(p)
		})
	}
	t.Run("stacked on the pod's own", func(t *testing.T) {
		n.define("stacked", left, map[string]any{"type": "macvlan", "master": "trunk0", "linkInContainer": true})
		p := n.admit("stacked", "stacked", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
		link := linkOf(t, vf).Attrs()
		n.must(p.ns.Do(func() error {
			return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "trunk0", Index: link.Index}})
		}))
		n.of(t).refuse(p, 111, "network device "+link.Name, "in the sandbox", "on the host", vf)
		n.release(p)
	})
	t.Run("for a program's", func(t *testing.T) {
		n.define("for-program", right, map[string]any{
			"type": "scripted", "other": linkOf(t, other).Attrs().Name, "script": map[string]any{"ADD": map[string]any{"lie": "device"}},
		})
		p := n.admit("for-program", "for-program", fakekubelet.Pins{"c": pin(vfio)}, container("c", right))
		n.of(t).refuse(p, 111, "parent device: wanted "+vfio+", found "+other)
		n.release(p)
	})
}

// of returns the node for a subtest.
func (n *node) of(t *testing.T) *node {
	m := *n
	m.t = t
	return &m
}

// properties returns a plugin that sets the PF's settings for the VF by the SR-IOV
// CNI's keys, followed by the plugin that moves the VF.
func properties(keys map[string]any) []map[string]any {
	first := map[string]any{"type": "vfprops"}
	for k, v := range keys {
		first[k] = v
	}
	return []map[string]any{first, hostDevice(nil)}
}

// propertiesOnThePF proves that ADD refuses a delegate that leaves a property of the VF
// on the PF as it is although the configuration asks for another value, for each
// property. Setting a property that igb's driver lacks fails with the driver's error. A
// delegate that does as asked is accepted.
func propertiesOnThePF(t *testing.T) {
	const index, mac = 5, "02:00:00:00:05:05"
	vf := pfs[0].vfs[index]
	pins := fakekubelet.Pins{"c": pin(vf)}
	uplink := linkOf(t, pfs[0].address)
	n := newNode(t)
	for key, tc := range map[string]struct {
		keys   map[string]any
		field  string
		before func(on bool) error // makes the difference visible; nil if not needed
		lacks  bool                // igb's driver does not have it
	}{
		"vlan":        {map[string]any{"vlan": 100}, "VLAN of the VF: wanted 100, found 0", nil, false},
		"vlanQoS":     {map[string]any{"vlan": 7, "vlanQoS": 3}, "VLAN QoS of the VF: wanted 3, found 0", nil, false},
		"spoofchk":    {map[string]any{"spoofchk": "off"}, "spoof check of the VF: wanted off, found on", nil, false},
		"trust":       {map[string]any{"trust": "on"}, "trust of the VF: wanted on, found off", nil, false},
		"trust left":  {map[string]any{"trust": "off"}, "trust of the VF: wanted off, found on", func(on bool) error { return netlink.LinkSetVfTrust(uplink, index, on) }, false},
		"max_tx_rate": {map[string]any{"max_tx_rate": 200}, "maximum rate of the VF: wanted 200, found 0", nil, false},
		"mac":         {map[string]any{"mac": mac}, "MAC (requested): wanted " + mac, nil, false},
		"vlanProto":   {map[string]any{"vlan": 100, "vlanProto": "802.1ad"}, "VLAN protocol of the VF: wanted 802.1ad, found 802.1q", nil, true},
		"link_state":  {map[string]any{"link_state": "enable"}, "link state of the VF: wanted enable, found auto", nil, true},
		"min_tx_rate": {map[string]any{"min_tx_rate": 10}, "minimum rate of the VF: wanted 10, found 0", nil, true},
	} {
		t.Run(key, func(t *testing.T) {
			n := n.of(t)
			lie, _, _ := strings.Cut(key, " ")
			name := strings.NewReplacer("_", "-", " ", "-").Replace(strings.ToLower(key))
			n.define(name, left, properties(tc.keys)...)
			tc.keys["lie"] = []string{lie}
			n.define("no-"+name, left, properties(tc.keys)...)
			if tc.before != nil {
				n.must(tc.before(true))
				defer func() { n.must(tc.before(false)) }()
			}
			p := n.admit("lied-to", "no-"+name, pins, container("c", left))
			n.refuse(p, 111, tc.field, vf)
			n.release(p)
			if tc.lacks {
				p = n.admit("failed", name, pins, container("c", left))
				n.refuse(p, 999, vf, "of VF 5")
				n.release(p)
			}
		})
	}
	t.Run("as asked", func(t *testing.T) {
		n := n.of(t)
		n.served(vf, map[string]any{"vlan": 100, "vlanQoS": 3, "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "mac": mac})
		n.must(netlink.LinkSetVfTrust(uplink, index, true))
		n.served(vf, map[string]any{"vlan": 7, "trust": "off"})
		n.must(netlink.LinkSetVfTrust(uplink, index, false))
	})
}

// served fails unless a pod gets a VF with these properties according to the kernel,
// and gives it back as it was.
func (n *node) served(vf string, keys map[string]any) {
	n.t.Helper()
	before := hardware(n.t)
	name := fmt.Sprintf("served-%d", *n.count)
	n.define(name, left, properties(keys)...)
	p := n.admit(name, name, fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", p)
	n.stands(p, vf)
	_, v := vfOf(n.t, vf)
	found := map[string]any{
		"vlan": v.Vlan, "vlanQoS": v.Qos, "spoofchk": onOff(v.Spoofchk), "trust": onOff(v.Trust == 1), "max_tx_rate": int(v.MaxTxRate), "mac": v.Mac.String(),
	}
	for key, want := range keys {
		if found[key] != want {
			n.t.Errorf("the PF has %s %v, want %v", key, found[key], want)
		}
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
	n.release(p)
	before.same(n.t)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
