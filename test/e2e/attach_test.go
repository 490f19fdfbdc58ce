// Package e2e runs the real programs with real delegates in real network
// namespaces. It checks what a pod gets, how bad input is handled, and what is left
// after any process was killed.
package e2e

import (
	"encoding/json"
	"net"
	"os"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// removeLink removes a link on the host if it exists.
func removeLink(name string) {
	if l, err := netlinksafe.LinkByName(name); err == nil {
		_ = netlink.LinkDel(l)
	}
}

// interfaceOf returns an interface of a pod and fails if it is missing.
func (n *node) interfaceOf(p *pod, name string) *netlink.LinkAttrs {
	n.t.Helper()
	link, err := p.ns.Link(name)
	n.must(err)
	if link == nil {
		n.t.Fatalf("pod %s has no interface %s", p.Name, name)
	}
	return link.Attrs()
}

// twoDevicePod returns the pod of the demo, with the default network, a bridge, and
// two networks on devices, one of each container, and the MAC addresses of the
// devices.
func (n *node) twoDevicePod(name string) (*pod, map[string]net.HardwareAddr) {
	n.t.Helper()
	n.define("plain", "", n.bridge("plain", "10.89.0.0/16"))
	n.define("nic-a", nicA, hostDevice)
	macs := map[string]net.HardwareAddr{}
	ids := map[string]string{}
	for _, dev := range []string{"nic0", "nic1"} {
		ids[dev] = n.device(dev)
		l, err := netlinksafe.LinkByName(dev)
		n.must(err)
		macs[dev] = l.Attrs().HardwareAddr
	}
	p := n.addPod(name, "plain, nic-a, nic-a", "c1", "c2")
	// c1 has the device with the higher ID: sorting the pod's devices would swap them.
	n.allocate(p, "c1", nicA, ids["nic1"])
	n.allocate(p, "c2", nicA, ids["nic0"])
	return p, macs
}

// warm creates the bridges, which the bridge plugin leaves behind on purpose.
func (n *node) warm() {
	n.t.Helper()
	n.define("plain", "", n.bridge("plain", "10.89.0.0/16"))
	p := n.addPod("warm", "plain")
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.must(os.RemoveAll(n.path("ipam")))
}

func TestPodGetsItsNetworksAndGivesThemBack(t *testing.T) {
	for name, agent := range map[string]bool{"agent": true, "one-shot": false} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			if agent {
				n.serve()
			}
			n.warm()
			p, macs := n.twoDevicePod("app")
			before := n.state()
			res := n.succeed("ADD", p)
			var result types100.Result
			n.must(json.Unmarshal(res.Stdout, &result))
			if len(result.IPs) != 1 || !result.IPs[0].Address.IP.Equal(net.IPv4(10, 88, 0, 2)) {
				t.Errorf("default network's result: %s", res.Stdout)
			}
			for ifName, dev := range map[string]string{"net2": "nic1", "net3": "nic0"} {
				if got := n.interfaceOf(p, ifName).HardwareAddr; got.String() != macs[dev].String() {
					t.Errorf("%s has address %s, want device %s with %s", ifName, got, dev, macs[dev])
				}
			}
			n.succeed("CHECK", p)
			n.succeed("DEL", p)
			n.unchanged(before)
			n.succeed("DEL", p)
			n.unchanged(before)
		})
	}
}
