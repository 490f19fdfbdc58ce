//go:build sriovlab

package checks

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// Two tests check what a power failure leaves, with the lab's program between them:
// TestBeforeReset prepares the node and waits for the guest to be killed, and
// TestAfterReset runs in the next boot from the same disk.

const (
	resetNode = wire.Disk + "/node" // directory of the node that is reset
	resetFile = wire.Disk + "/pods" // what was on that node
)

// resetPods is the state before the reset: the boot ID, the number of sandbox names
// used, and the pods on the node.
type resetPods struct {
	Boot                 string
	Count                int
	Stays, Goes, Unready resetPod
}

// resetPod is a pod with its sandbox from before the reset.
type resetPod struct {
	Object  *corev1.Pod
	Sandbox harness.Sandbox
}

// defineReset adds the pods' networks; the API server has them in both boots.
func (n *node) defineReset() {
	n.t.Helper()
	n.define("left", left, hostDevice(map[string]any{"ipam": n.ipam("10.63.0.0/24")}))
	n.define("right", right, properties(map[string]any{"vlan": 100, "trust": "on", "spoofchk": "off"})...)
}

// lastPoint returns the number of the last kill point with a name, counted from 1.
func lastPoint(names []string, name string) int {
	for i := len(names); i > 0; i-- {
		if names[i-1] == name {
			return i
		}
	}
	return 0 // no kill point has this number
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// TestBeforeReset prepares a node with two attached pods and one whose ADD was killed,
// says that the guest may be reset, and waits for that.
func TestBeforeReset(t *testing.T) {
	n := startNode(t, resetNode, fakekubelet.Normal)
	n.defineReset()
	boot, err := bootID()
	n.must(err)
	stays := n.admit("stays", "left,right", fakekubelet.Pins{"c": pin(pfs[0].vfs[1], pfs[1].vfs[1])}, container("c", left, right))
	goes := n.admit("goes", "left", fakekubelet.Pins{"c": pin(pfs[0].vfs[2])}, container("c", left))
	unready := n.admit("unready", "right", fakekubelet.Pins{"c": pin(pfs[1].vfs[3])}, container("c", right))
	n.succeed("ADD", stays)
	n.succeed("ADD", goes)
	unix.Sync() // these two have lived for some time; of the third only what the plugin synced survives
	names, err := n.rt.KillPoints("ADD", unready.Sandbox, n.path("points"))
	n.must(err)
	n.succeed("DEL", unready)
	n.must(n.rt.KillAt("ADD", unready.Sandbox, lastPoint(names, "delegate added"), true))
	of := func(p *pod) resetPod { return resetPod{p.object, p.Sandbox} }
	raw, err := json.Marshal(resetPods{boot, *n.count, of(stays), of(goes), of(unready)})
	n.must(err)
	f, err := os.Create(resetFile)
	n.must(err)
	_, err = f.Write(raw)
	n.must(errors.Join(err, f.Sync(), f.Close()))
	fmt.Println(ResetNow)
	select {}
}

// TestAfterReset proves what becomes of the pods of before the reset: their VFs are
// found as stranded, a pod that starts again gets its VFs, a new pod gets a VF of a pod
// that is gone, and late DELs of the old sandboxes change nothing.
func TestAfterReset(t *testing.T) {
	was, err := readReset()
	if err != nil {
		t.Fatal(err)
	}
	clean := hardware(t)
	n := startNode(t, resetNode, fakekubelet.Registered)
	*n.count = was.Count
	n.defineReset()
	n.areStranded(map[string]string{
		pfs[0].vfs[1]: "default/stays", pfs[1].vfs[1]: "default/stays", pfs[0].vfs[2]: "default/goes",
	})
	clean.same(t)
	n.staleCheckpoint(was.Goes)

	// The kubelet starts one pod again on its devices. It gives the devices of another,
	// which did not survive, to a new pod.
	again := n.admitPod(was.Stays.Object, nil)
	n.must(n.kubelet.SetPhase(fakekubelet.Normal))
	n.succeed("ADD", again)
	n.stands(again, pfs[0].vfs[1], pfs[1].vfs[1])
	next := n.admit("next", "left", fakekubelet.Pins{"c": pin(pfs[0].vfs[2])}, container("c", left))
	n.succeed("ADD", next)
	n.stands(next, pfs[0].vfs[2])
	n.api.AddPod(was.Goes.Object)
	n.refuse(n.again(&pod{Sandbox: was.Goes.Sandbox}), 11, "default/goes")

	// The DELs of the old sandboxes come late. They must touch nothing, although the
	// path of one's network namespace now belongs to another sandbox.
	was.Stays.Sandbox.NetNS = again.NetNS
	for range 2 {
		for _, p := range []resetPod{was.Stays, was.Goes, was.Unready} {
			n.succeed("DEL", &pod{Sandbox: p.Sandbox})
		}
		was.Stays.Sandbox.NetNS = "" // without a journal, DEL has only the runtime's word
	}
	for _, p := range []*pod{again, next} {
		n.succeed("CHECK", p)
		n.succeed("DEL", p)
	}
	n.inOrder()
	clean.same(t)
	n.nothingOfPods()
}

// staleCheckpoint proves that the kubelet's checkpoint gives nothing to a new pod that
// has the name of a pod of the previous boot. The kubelet has not cleaned the
// checkpoint up yet.
func (n *node) staleCheckpoint(was resetPod) {
	n.t.Helper()
	raw, err := os.ReadFile(n.kubelet.CheckpointPath())
	n.must(err)
	if !strings.Contains(string(raw), was.Sandbox.UID) {
		n.t.Errorf("the checkpoint is not stale: %s", raw)
	}
	object := was.Object.DeepCopy()
	object.UID = "00000000-0000-4000-8000-999999999999"
	n.api.AddPod(object)
	anew := was.Sandbox
	anew.UID, anew.ID = string(object.UID), "anew"
	p := n.again(&pod{Sandbox: anew})
	n.refuse(p, 11, "default/goes")
	n.must(p.ns.Delete())
	n.api.DeletePod(object.Namespace, object.Name)
}

// nothingOfPods fails if a journal, a claim or an address is left.
func (n *node) nothingOfPods() {
	n.t.Helper()
	for _, line := range n.state() {
		// A lease that host-local did not sync is an empty file after the reset, so it
		// cannot say whose it was.
		address := strings.Contains(line, "file "+n.path("ipam")) && !strings.Contains(line, " 0 bytes ")
		if strings.Contains(line, ".journal") || strings.Contains(line, "/devices/") || address {
			n.t.Errorf("left behind: %s", line)
		}
	}
}

// readReset returns the state before the reset, and removes the files that would not
// survive a boot if, as usual, /run were in memory.
func readReset() (*resetPods, error) {
	raw, err := os.ReadFile(resetFile)
	if err != nil {
		return nil, fmt.Errorf("TestBeforeReset left nothing: %w", err)
	}
	was := &resetPods{}
	if err := json.Unmarshal(raw, was); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if boot == was.Boot {
		return nil, fmt.Errorf("boot %s is the one that TestBeforeReset ran in", boot)
	}
	return was, errors.Join(os.Remove(resetNode+"/agent.sock"), os.Remove(resetNode+"/snapshot"))
}

// areStranded fails unless exactly these VFs are found as those of dead sandboxes of
// the given pods. Repairing them would be wrong: they are as the boot left them.
func (n *node) areStranded(pods map[string]string) {
	n.t.Helper()
	for _, f := range n.found("--repair") {
		if f.Kind != reconcile.Stranded || !strings.Contains(f.String(), pods[f.Device]) {
			n.t.Errorf("unexpected finding: %s", f)
		}
		delete(pods, f.Device)
	}
	if len(pods) > 0 {
		n.t.Errorf("missing findings: %v", pods)
	}
}
