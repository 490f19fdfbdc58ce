package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/manifold-cni/manifold/test/harness"
)

// loopRuntime returns a runtime that calls the careful loop over the same networks
// as killPod's.
func (n *node) loopRuntime() harness.Runtime {
	n.t.Helper()
	list := func(name, plugin string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, plugin))
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "loop", "type": "loop", "cniDir": n.path("state"),
		"networks": []json.RawMessage{
			list("cluster-net", `{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","ranges":[[{"subnet":"10.88.0.0/16"}]]}}`),
			list("plain", n.bridge("plain", "10.89.0.0/16")),
			list("nic-a", `{"type":"host-device","device":"nic0","ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","subnet":"10.90.0.0/16"}}`),
		},
	})
	n.must(err)
	return harness.Runtime{Plugin: filepath.Join(n.bin, "loop"), Path: n.bin, Conf: conf}
}

// TestTheLoopBesides kills a careful loop over libcni the way Manifold is killed,
// and logs what the reference delegates themselves leave behind. Manifold's own
// test, TestKilledAtEveryPointLeavesNothing, allows none of it.
func TestTheLoopBesides(t *testing.T) {
	learn := newNode(t, nil)
	learn.warm()
	p := learn.killPod("learn")
	learn.rt = learn.loopRuntime()
	points := learn.points("ADD", p)
	learn.succeed("DEL", p)
	removeLink("nic0")
	if len(points) != 6 {
		t.Fatalf("points %v", points)
	}
	left := 0
	for k := range points {
		for _, gone := range []bool{false, true} {
			if n := loopRound(t, k+1, gone); n != "" {
				left++
				t.Logf("the loop killed after %q, network namespace gone: %v:\n%s", points[k], gone, n)
			}
		}
	}
	t.Logf("the loop left something behind in %d of %d rounds, Manifold in none", left, 2*len(points))
	if left == 0 {
		t.Error("the loop left nothing behind in any round: the comparison is meaningless")
	}
}

// loopRound kills the loop's ADD at one point, runs its DEL twice, and returns what
// is left, including a DEL that still fails.
func loopRound(t *testing.T, k int, gone bool) string {
	n := newNode(t, nil)
	n.warm()
	p := n.killPod("victim")
	n.rt = n.loopRuntime()
	before := n.state()
	n.must(n.rt.KillAt("ADD", p.Sandbox, k, true))
	if gone {
		n.must(p.ns.Delete())
	}
	n.call("DEL", p)
	left := ""
	if res := n.call("DEL", p); res.Status != 0 {
		left = "DEL still fails: " + res.Error.Msg + "\n"
	}
	_ = p.ns.Delete() // already gone in some rounds
	var diff string
	n.waits(func() bool { diff = withoutGone(before.Diff(n.state())); return diff == "" })
	removeLink("nic0")
	return left + diff
}
