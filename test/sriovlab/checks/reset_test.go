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

// What a machine that loses its power leaves is checked by two tests, with the
// lab's program between them: TestBeforeReset prepares and waits for the end, and
// TestAfterReset runs in the next boot, on the same disk.

const (
	resetNode = wire.Disk + "/node" // directory of the node that is reset
	resetFile = wire.Disk + "/pods" // what stood on it
)

// resetPods are the pods that stood on the node, the boot, and how many names of
// sandboxes were used.
type resetPods struct {
	Boot                 string
	Count                int
	Stays, Goes, Unready resetPod
}

// resetPod is a pod with its sandbox of before.
type resetPod struct {
	Object  *corev1.Pod
	Sandbox harness.Sandbox
}

// defineReset adds the networks of the pods, as in both boots the API server has
// them.
func (n *node) defineReset() {
	n.t.Helper()
	n.define("left", left, hostDevice(map[string]any{"ipam": n.ipam("10.63.0.0/24")}))
	n.define("right", right, properties(map[string]any{"vlan": 100, "trust": "on", "spoofchk": "off"})...)
}

// lastPoint is the ordinal of the last kill point of a name.
func lastPoint(names []string, name string) int {
	for i := len(names); i > 0; i-- {
		if names[i-1] == name {
			return i
		}
	}
	return 0 // no point is killed at
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

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
	unix.Sync() // these two have lived for some time; of the third only what was synchronised is left
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

	// The kubelet starts the one pod again, on its devices, and gives those of
	// another, which went with the machine, to a new one.
	again := n.admitPod(was.Stays.Object, nil)
	n.must(n.kubelet.SetPhase(fakekubelet.Normal))
	n.succeed("ADD", again)
	n.stands(again, pfs[0].vfs[1], pfs[1].vfs[1])
	next := n.admit("next", "left", fakekubelet.Pins{"c": pin(pfs[0].vfs[2])}, container("c", left))
	n.succeed("ADD", next)
	n.stands(next, pfs[0].vfs[2])
	n.api.AddPod(was.Goes.Object)
	n.refuse(n.again(&pod{Sandbox: was.Goes.Sandbox}), 11, "default/goes")

	// The DELs of the old sandboxes come late, and touch nobody, though at the path
	// of one's network namespace there is another's.
	was.Stays.Sandbox.NetNS = again.NetNS
	for range 2 {
		for _, p := range []resetPod{was.Stays, was.Goes, was.Unready} {
			n.succeed("DEL", &pod{Sandbox: p.Sandbox})
		}
		was.Stays.Sandbox.NetNS = "" // without a journal the runtime's word is all there is
	}
	for _, p := range []*pod{again, next} {
		n.succeed("CHECK", p)
		n.succeed("DEL", p)
	}
	n.inOrder()
	clean.same(t)
	n.nothingOfPods()
}

// staleCheckpoint: what the kubelet's checkpoint, which it has not yet put in
// order, says of a pod of the other boot gives nothing to a new pod of its name.
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
		// A lease that host-local did not synchronise is an empty file: it cannot say
		// itself whose it was.
		address := strings.Contains(line, "file "+n.path("ipam")) && !strings.Contains(line, " 0 bytes ")
		if strings.Contains(line, ".journal") || strings.Contains(line, "/devices/") || address {
			n.t.Errorf("left behind: %s", line)
		}
	}
}

// readReset reads what the other boot left, and takes away what does not outlive a
// boot where /run is in memory.
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
		return nil, fmt.Errorf("boot %s is no other boot than TestBeforeReset ran in", boot)
	}
	return was, errors.Join(os.Remove(resetNode+"/agent.sock"), os.Remove(resetNode+"/snapshot"))
}

// areStranded fails unless these VFs are known as those of dead sandboxes, by the
// pods' names. To repair them would be wrong: they are as the boot made them.
func (n *node) areStranded(pods map[string]string) {
	n.t.Helper()
	for _, f := range n.found("--repair") {
		if f.Kind != reconcile.Stranded || !strings.Contains(f.String(), pods[f.Device]) {
			n.t.Errorf("found %s", f)
		}
		delete(pods, f.Device)
	}
	if len(pods) > 0 {
		n.t.Errorf("not found: %v", pods)
	}
}
