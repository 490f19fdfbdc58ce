//go:build sriovlab

package checks

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// together runs a verb for all pods at once and returns the results in the order of the
// pods.
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

// TestAllVFsAtOnce proves that each of all VFs goes to its own pod when all pods are
// attached at once.
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

// again creates another sandbox of a pod, as a runtime does when it has given up the
// first.
func (n *node) again(p *pod) *pod {
	n.t.Helper()
	netns, err := harness.NewNetNS(p.Name + "-again")
	n.must(err)
	n.t.Cleanup(func() { _ = netns.Delete() }) // a test may have deleted it
	q := *p
	q.ns, q.NetNS, q.ID = netns, netns.Path, p.ID+"again"
	return &q
}

// TestTwoSandboxesWantOneVF proves that of two sandboxes that want a pod's only VF at
// once, one gets it and the other is refused, and that undoing the loser does not touch
// what the winner has.
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
	if results[0].Status == results[1].Status {
		t.Fatalf("one of two ADDs must succeed: %s and %s", results[0].Stdout, results[1].Stdout)
	}
	n.says(lost, 11, vf, "claim device", "still has it") // refused by the claim, not by a delegate's failure
	for _, verb := range []string{"DEL", "DEL"} {
		n.succeed(verb, loser)
		if parent, _, _ := n.on(winner, "net1"); parent != vf {
			t.Errorf("after %s of the loser, net1 is %s, want %s", verb, parent, vf)
		}
	}
	n.succeed("CHECK", winner)
	n.succeed("DEL", winner)
}

// TestVFWithoutDriver proves that ADD refuses a VF without a driver: nothing of such a
// VF can go into a pod.
func TestVFWithoutDriver(t *testing.T) {
	n := newVolatile(t)
	vf := pfs[1].vfs[1]
	n.must(os.WriteFile("/sys/bus/pci/drivers/igbvf/unbind", []byte(vf), 0))
	p := n.admit("app", "right", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.refuse(p, 999, vf)
	n.succeed("DEL", p)
}

// TestVFThatADefinitionNamesHasOneOwner proves that a definition that names a VF itself
// cannot take it from its owner. It is refused while another pod has the VF. Afterwards
// the VF is claimed, and given back as it was.
func TestVFThatADefinitionNamesHasOneOwner(t *testing.T) {
	vf := pfs[0].vfs[5]
	n := newNode(t)
	atRest := hardware(t)
	n.define("left", left, hostDevice(nil))
	n.define("static", "", map[string]any{"type": "vfprops", "vlan": 666, "trust": "on", "deviceID": vf}, map[string]any{"type": "host-device", "pciBusID": vf})
	owner := n.admit("owner", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", owner)
	other := n.admit("other", "static", nil, container("c"))
	n.refuse(other, 106, "default/static", vf, "pod default/owner", "resourceName to "+left)
	n.succeed("CHECK", owner)
	n.must(n.kubelet.DeletePod(types.UID(owner.UID))) // before its DEL
	// The kubelet's checkpoint lists a deleted pod until the next allocation.
	n.admit("next", "left", fakekubelet.Pins{"c": pin(pfs[0].vfs[4])}, container("c", left))
	n.refuse(other, 11, "default/static", vf, "still has it")
	n.succeed("CHECK", owner)
	n.succeed("DEL", owner)
	n.succeed("ADD", other)
	if parent, _, _ := n.on(other, "net1"); parent != vf {
		t.Errorf("net1 is %s, want %s", parent, vf)
	}
	if _, info := vfOf(t, vf); info.Vlan != 666 || info.Trust != 1 {
		t.Errorf("the PF has %+v, want VLAN 666 and trust on", info)
	}
	n.inOrder()
	n.succeed("CHECK", other)
	n.succeed("DEL", other)
	atRest.same(t)
}
