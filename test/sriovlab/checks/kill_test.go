//go:build sriovlab

package checks

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// afterKill is what a runtime may do between the death of its plugin and the DEL. The
// kill points take turns with these cases.
var afterKill = []struct {
	name string
	do   func(n *node, p *pod)
}{
	{"DEL", func(*node, *pod) {}},
	{"DEL without the network namespace", func(n *node, p *pod) { n.must(p.ns.Delete()) }},
	{"DEL without the network namespace, a delegate refusing at first", func(n *node, p *pod) {
		n.must(p.ns.Delete())
		n.must(os.WriteFile(n.path("refuse"), nil, 0o600))
		res := n.call("DEL", p)
		n.must(os.Remove(n.path("refuse")))
		if res.Error != nil { // otherwise there was nothing to release
			n.before.same(n.t)
		}
	}},
	{"DEL after the pod's next sandbox", func(n *node, p *pod) {
		next := n.again(p)
		n.must(p.ns.Delete())
		n.succeed("ADD", next)
		n.must(next.ns.Delete())
		n.succeed("DEL", next)
	}},
}

// TestKilledAtEveryPointGivesTheVFBack proves that DEL restores a VF after the plugin
// died at any kill point, with everything that a delegate can set on the PF set, half
// set, or half taken back.
func TestKilledAtEveryPointGivesTheVFBack(t *testing.T) {
	n := newNode(t)
	n.define("set", left, properties(map[string]any{
		"vlan": 100, "vlanQoS": 3, "mac": "02:00:00:00:06:02", "spoofchk": "off", "trust": "on", "max_tx_rate": 200,
		"refuse": n.path("refuse"),
	})...)
	learn := n.victim(t, 0)
	points := map[string][]string{}
	for _, verb := range []string{"ADD", "DEL"} {
		names, err := n.rt.KillPoints(verb, learn.Sandbox, n.path("points"))
		n.must(err)
		points[verb] = names
	}
	n.release(learn)
	if !slices.Contains(points["ADD"], "device claimed") || !slices.Contains(points["ADD"], "delegate added") || !slices.Contains(points["DEL"], "delegate released") {
		t.Fatalf("kill points that matter are missing: %v", points)
	}
	round := 0
	for _, verb := range []string{"ADD", "DEL"} {
		for i, name := range points[verb] {
			after := afterKill[round%len(afterKill)]
			group := round/len(afterKill)%2 == 1
			round++
			t.Run(fmt.Sprintf("%s/%02d %s/%s", verb, i+1, name, after.name), func(t *testing.T) {
				n.of(t).killRound(t, verb, i+1, group, round, after.do)
			})
		}
	}
}

// victim admits a pod with a VF on which the network sets everything.
func (n *node) victim(t *testing.T, round int) *pod {
	t.Helper()
	vf := pfs[0].vfs[round%len(pfs[0].vfs)]
	return n.admit("victim", "set", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
}

// killRound kills a verb at one point, does what the runtime does next, and compares
// the states.
func (n *node) killRound(t *testing.T, verb string, k int, group bool, round int, after func(*node, *pod)) {
	vfs, state := hardware(t), n.state()
	p := n.victim(t, round)
	if verb == "DEL" {
		n.succeed("ADD", p)
	}
	n.must(n.rt.KillAt(verb, p.Sandbox, k, group))
	after(n, p)
	n.succeed("DEL", p)
	if group { // every other four rounds, DEL twice
		n.succeed("DEL", p)
	}
	n.release(p)
	vfs.same(t)
	n.unchanged(state)
}
