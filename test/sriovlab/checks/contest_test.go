//go:build sriovlab

package checks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// together runs a verb for all pods at once and returns the results in their
// order.
func (n *node) together(verb string, pods ...*pod) []*harness.Result {
	n.t.Helper()
	results, errs := make([]*harness.Result, len(pods)), make([]error, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() { results[i], errs[i] = n.rt.Call(verb, p.Sandbox) })
	}
	wg.Wait()
	for _, err := range errs {
		n.must(err)
	}
	return results
}

func TestAllVFsAtOnce(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	n.define("right", right, hostDevice(nil))
	var pods []*pod
	var want []string
	for i, network := range []string{"left", "right"} {
		for j, vf := range pfs[i].vfs {
			pods = append(pods, n.admit(fmt.Sprintf("%s-%d", network, j), network, fakekubelet.Pins{"c": pin(vf)}, container("c", pfs[i].resource)))
			want = append(want, vf)
		}
	}
	for i, res := range n.together("ADD", pods...) {
		if res.Status != 0 {
			t.Fatalf("ADD %s: %s", pods[i].Name, res.Stdout)
		}
	}
	for i, p := range pods {
		n.stands(p, want[i])
	}
	for i, res := range n.together("DEL", pods...) {
		if res.Status != 0 {
			t.Errorf("DEL %s: %s", pods[i].Name, res.Stdout)
		}
	}
}

// again makes another sandbox of a pod, as a runtime does when it gave the first
// up.
func (n *node) again(p *pod) *pod {
	n.t.Helper()
	netns, err := harness.NewNetNS(p.Name + "-again")
	n.must(err)
	n.t.Cleanup(func() { _ = netns.Delete() }) // a test may have deleted it
	q := *p
	q.ns, q.NetNS, q.ID = netns, netns.Path, p.ID+"again"
	return &q
}

// Two sandboxes of one pod want its one VF at once: one of them gets it, the
// other is refused, and undoing the other does not touch what the first has.
func TestTwoSandboxesWantOneVF(t *testing.T) {
	n := newNode(t)
	vf := pfs[0].vfs[0]
	n.define("left", left, hostDevice(nil))
	first := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	second := n.again(first)
	results := n.together("ADD", first, second)
	winner, loser, lost := first, second, results[1]
	if results[0].Status != 0 {
		winner, loser, lost = second, first, results[0]
	}
	if lost.Status == 0 || lost.Error == nil || results[0].Status == results[1].Status {
		t.Fatalf("one of two ADDs must succeed: %s and %s", results[0].Stdout, results[1].Stdout)
	}
	if !strings.Contains(lost.Error.Msg, vf) {
		t.Errorf("the message lacks the VF %s: %s", vf, lost.Error.Msg)
	}
	for _, verb := range []string{"DEL", "DEL"} {
		n.succeed(verb, loser)
		if parent, _, _ := n.on(winner, "net1"); parent != vf {
			t.Errorf("after %s of the loser, net1 is %s, want %s", verb, parent, vf)
		}
	}
	n.succeed("CHECK", winner)
	n.succeed("DEL", winner)
}

// unplug takes all VFs of a PF out of the machine; a single one cannot be.
func (n *node) unplug(p pf) {
	n.t.Helper()
	n.must(os.WriteFile(filepath.Join("/sys/bus/pci/devices", p.address, "sriov_numvfs"), []byte("0"), 0))
}

// vanishing starts a node whose VFs of the right PF may go: afterwards they are
// made anew, so that they are not compared.
func vanishing(t *testing.T) *node {
	t.Helper()
	t.Cleanup(func() {
		if err := pfs[1].renew(); err != nil {
			t.Fatal(err)
		}
	})
	n := newNode(t)
	n.before = nil
	return n
}

func TestVFGoneBeforeADD(t *testing.T) {
	n := vanishing(t)
	vf := pfs[1].vfs[1]
	n.define("right", right, hostDevice(nil))
	p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.unplug(pfs[1])
	res := n.call("ADD", p)
	if res.Status == 0 || res.Error == nil || !strings.Contains(res.Error.Msg, vf) || !strings.Contains(res.Error.Msg, "no such device") {
		t.Errorf("ADD on a VF that is gone: %s", res.Stdout)
	}
	n.succeed("DEL", p)
}

// A VF without a driver is there, but nothing of it can go into a pod.
func TestVFWithoutDriver(t *testing.T) {
	n := vanishing(t)
	vf := pfs[1].vfs[1]
	n.define("right", right, hostDevice(nil))
	n.must(os.WriteFile("/sys/bus/pci/drivers/igbvf/unbind", []byte(vf), 0))
	p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.refuse(p, 999, vf)
	n.succeed("DEL", p)
}

func TestVFGoneDuringADD(t *testing.T) {
	n := vanishing(t)
	vf := pfs[1].vfs[1]
	slow := idle(nil)
	gate := n.path("gate")
	slow["script"].(map[string]any)["ADD"].(map[string]any)["gate"] = gate
	n.define("right", right, slow, hostDevice(nil))
	p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	done := make(chan *harness.Result)
	go func() { done <- n.call("ADD", p) }()
	n.eventually("the delegate", func() bool {
		_, err := os.Stat(gate + ".reached")
		return err == nil
	})
	n.unplug(pfs[1])
	n.must(os.WriteFile(gate, nil, 0o600))
	if res := <-done; res.Status == 0 || res.Error == nil || !strings.Contains(res.Error.Msg, vf) {
		t.Errorf("ADD on a VF that went: %s", res.Stdout)
	}
	n.succeed("DEL", p)
}

// All VFs of a PF go while a pod holds one: CHECK says so, DEL does not fail for
// ever on what is no more, and the other PF's VF in the same pod comes back.
func TestVFsGoneAfterADD(t *testing.T) {
	n := vanishing(t)
	vf, kept := pfs[1].vfs[1], pfs[0].vfs[1]
	before := linkOf(t, kept).Attrs().Name
	n.define("right", right, hostDevice(nil))
	n.define("left", left, hostDevice(nil))
	p := n.admit("app", "right,left", fakekubelet.Pins{"c": pin(vf, kept)}, container("c", right, left))
	n.succeed("ADD", p)
	n.stands(p, vf, kept)
	n.unplug(pfs[1])
	if res := n.call("CHECK", p); res.Status == 0 || res.Error == nil || !strings.Contains(res.Error.Msg, "net1") {
		t.Errorf("CHECK of a pod whose VF is gone: %s", res.Stdout)
	}
	n.succeed("DEL", p)
	if got := linkOf(t, kept).Attrs().Name; got != before {
		t.Errorf("%s came back as %s, was %s", kept, got, before)
	}
}
