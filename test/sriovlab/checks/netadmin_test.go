//go:build sriovlab

package checks

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// inside changes the interface of a pod's VF as a pod with NET_ADMIN can.
func (n *node) inside(p *pod, do func(l netlink.Link) error) {
	n.t.Helper()
	n.must(p.ns.Do(func() error {
		l, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		return do(l)
	}))
}

// asBefore fails unless a VF has all the settings that it had before.
func (n *node) asBefore(vf string, before *sriov.Snapshot) {
	n.t.Helper()
	now, err := sriov.Host{}.Snapshot(vf)
	n.must(err)
	if left := before.Compare(now); len(left) > 0 {
		n.t.Errorf("left on %s: %s", vf, sriov.Sentences(left))
	}
}

// rename sets a link down and gives it another name.
func rename(l netlink.Link, name string) error {
	return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, name))
}

// TestPodWithNetAdmin proves that nothing a pod does to its VF in its own network
// namespace keeps the VF from being returned, affects the next pod, or moves another
// device.
func TestPodWithNetAdmin(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	vf := pfs[0].vfs[1]
	before, err := sriov.Host{}.Snapshot(vf)
	n.must(err)
	for name, do := range map[string]func(l netlink.Link) error{
		"rename": func(l netlink.Link) error { return rename(l, "mine0") },
		"rename, and the name as an alternative one": func(l netlink.Link) error {
			return errors.Join(rename(l, "mine0"), netlink.LinkAddAltName(l, "net1"))
		},
		"an alternative name that the host has":                 func(l netlink.Link) error { return netlink.LinkAddAltName(l, "cni0") },
		"more alternative names than the netlink library reads": manyNames,
		"as many of another interface": func(netlink.Link) error {
			_, err := harness.AddManyNames("mine0")
			return err
		},
		"an alias that the host has as a name": func(l netlink.Link) error { return netlink.LinkSetAlias(l, linkName(pfs[0].vfs[2])) },
		"no alias":                             func(l netlink.Link) error { return netlink.LinkSetAlias(l, "") },
		"another in its place": func(l netlink.Link) error {
			return errors.Join(rename(l, "mine0"), netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "net1", Alias: "decoy0"}}))
		},
		"settings": func(l netlink.Link) error {
			fd, err := harness.LoadXDP()
			if err != nil {
				return err
			}
			return errors.Join(netlink.SetPromiscOn(l), netlink.LinkSetAllmulticastOn(l), netlink.LinkSetTxQLen(l, 7), netlink.LinkSetARPOff(l),
				netlink.LinkSetGroup(l, 9), netlink.LinkSetXdpFdWithFlags(l, fd, harness.XDPGeneric), unix.Close(fd))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := n.of(t)
			p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
			defer n.release(p)
			n.succeed("ADD", p)
			n.inside(p, do)
			n.succeed("DEL", p)
			n.asBefore(vf, before)
			n.inOrder()
			n.before.same(t)
			there, err := p.ns.Link("net1")
			n.must(err)
			if (there != nil) != (name == "another in its place") {
				t.Errorf("net1 in the pod: %v", there)
			}
			n.succeed("DEL", p) // DEL must leave the pod's own interface where it is
			n.before.same(t)
		})
	}
}

// manyNames gives a link as many alternative names as the kernel allows.
func manyNames(l netlink.Link) error {
	_, err := harness.ManyNames(l.Attrs().Name)
	return err
}

// TestManyNamesComeToTheHost proves that DEL restores a VF that the kernel returned
// with so many alternative names that the node's programs cannot read its network
// device, because the namespace went first.
func TestManyNamesComeToTheHost(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	vf := pfs[0].vfs[1]
	before, err := sriov.Host{}.Snapshot(vf)
	n.must(err)
	p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", p)
	n.inside(p, manyNames)
	n.must(p.ns.Delete())
	n.succeed("DEL", p)
	n.asBefore(vf, before)
	n.release(p)
	n.inOrder()
}

// linkName returns the name of a function's network device; it is empty if there is
// none.
func linkName(address string) string {
	f, err := sriov.FS{}.Function(address)
	if err != nil || len(f.NetDevs) == 0 {
		return ""
	}
	return f.NetDevs[0]
}

// TestPodChoosesAMACAfterAnother proves that a VF that got its own MAC back still
// accepts one from the next pod's plugin, also if the namespace went first.
func TestPodChoosesAMACAfterAnother(t *testing.T) {
	n := newNode(t)
	n.define("tuned", right, hostDevice(nil), map[string]any{"type": "tuning", "capabilities": map[string]any{"mac": true}})
	for i := range 3 {
		networks := fmt.Sprintf(`[{"name":"tuned","mac":"02:00:00:00:07:0%d"}]`, i+1)
		p := n.admit(fmt.Sprintf("app%d", i), networks, fakekubelet.Pins{"c": pin(ownMAC)}, container("c", right))
		before, err := sriov.Host{}.Snapshot(ownMAC)
		n.must(err)
		n.succeed("ADD", p)
		if i == 1 {
			n.must(p.ns.Delete())
		}
		n.succeed("DEL", p)
		n.asBefore(ownMAC, before)
		n.release(p)
	}
}

// TestPFAwayAtDEL proves that settings on a PF that is in another network namespace are
// not forgotten: no pod gets the VF until the PF is back.
func TestPFAwayAtDEL(t *testing.T) {
	n := newNode(t)
	n.define("set", right, properties(map[string]any{"vlan": 100, "trust": "on", "spoofchk": "off", "lie": []string{"DEL"}})...)
	n.define("plain", right, hostDevice(nil))
	vf := pfs[1].vfs[2]
	before, err := sriov.Host{}.Snapshot(vf)
	n.must(err)
	p := n.admit("app", "set", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.succeed("ADD", p)
	uplink := linkOf(t, pfs[1].address)
	hidden, err := harness.NewNetNS("hidden")
	n.must(err)
	file, err := os.Open(hidden.Path)
	n.must(err)
	n.must(errors.Join(netlink.LinkSetNsFd(uplink, int(file.Fd())), file.Close()))
	n.succeed("DEL", p)
	n.finds(reconcile.Quarantined, vf, "no network device here")
	n.release(p)
	next := n.admit("next", "plain", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.says(n.call("ADD", next), 116, vf, "no network device here")
	n.must(hidden.Delete())
	n.eventually("the PF to be back", func() bool { return len(readFunction(t, pfs[1].address).NetDevs) == 1 })
	n.must(netlink.LinkSetUp(linkOf(t, pfs[1].address)))
	n.succeed("ADD", next)
	n.succeed("DEL", next)
	n.asBefore(vf, before)
	n.inOrder()
}
