package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// TestMasqueradingNetwork kills an ADD of a bridge network with ipMasq, whose rules
// the reference plugin keeps in the host's firewall. The only difference allowed is
// what that plugin itself leaves there: its DEL takes the pod's addresses from the
// pod's interface, so it removes no rule if the interface never existed or is gone.
func TestMasqueradingNetwork(t *testing.T) {
	if _, err := exec.LookPath("iptables-save"); err != nil {
		t.Skip("iptables is not installed: the bridge plugin cannot masquerade")
	}
	t.Run("sandbox lives", func(t *testing.T) {
		n, p := newMasquerade(t)
		before := n.state()
		points := n.points("ADD", p)
		n.succeed("DEL", p)
		n.settles(func() string { return before.Diff(n.state()) })
		for k := range points {
			n.must(n.rt.KillAt("ADD", p.Sandbox, k+1, true))
			n.succeed("DEL", p)
			n.settles(func() string { return before.Diff(n.state()) })
		}
	})
	t.Run("sandbox is gone", func(t *testing.T) {
		n, p := newMasquerade(t)
		before := n.state()
		n.succeed("ADD", p)
		n.must(p.ns.Delete())
		n.succeed("DEL", p)
		n.settles(func() string { return withoutMasquerade(withoutGone(before.Diff(n.state()))) })
	})
}

// newMasquerade returns a node with a pod on an existing masquerading bridge.
func newMasquerade(t *testing.T) (*node, *pod) {
	n := newNode(t, nil)
	n.serve()
	n.define("masq", "", `{"cniVersion":"1.0.0","type":"bridge","bridge":"br-masq","isGateway":true,"ipMasq":true,
		"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","subnet":"10.96.0.0/16"}}`)
	n.warm()
	first := n.addPod("first", "masq")
	n.succeed("ADD", first)
	n.succeed("DEL", first)
	return n, n.addPod("victim", "masq")
}

// withoutMasquerade drops the rules that the bridge plugin leaves behind if the
// interface is gone.
func withoutMasquerade(diff string) string {
	var out []string
	for _, line := range strings.Split(diff, "\n") {
		if line != "" && !strings.Contains(line, "firewall ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
