//go:build sriovlab

package checks

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// found runs the agent's reconcile command and returns the findings it prints.
func (n *node) found(flags ...string) []reconcile.Finding {
	n.t.Helper()
	cmd := exec.Command("/opt/manifold/manifold-agent", append([]string{"reconcile", "--config", n.path("agent.json")}, flags...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && len(flags) == 0 {
		n.t.Fatalf("reconcile: %v: %s", err, stderr.String())
	}
	var list []reconcile.Finding
	for line := range bytes.Lines(out) {
		var f reconcile.Finding
		n.must(json.Unmarshal(line, &f))
		list = append(list, f)
	}
	return list
}

// finds fails unless the reconcile command finds exactly this about the VFs, and waits
// until the running agent counts it.
func (n *node) finds(kind reconcile.Kind, vf string, parts ...string) {
	n.t.Helper()
	list := n.found()
	if len(list) != 1 || list[0].Kind != kind || list[0].Device != vf || list[0].PF != pfOf(vf) {
		n.t.Fatalf("found %v, want %s %s", list, kind, vf)
	}
	for _, part := range parts {
		if !strings.Contains(list[0].String(), part) {
			n.t.Errorf("%s lacks %q", list[0], part)
		}
	}
	n.shows(counts{kind: 1})
}

// inOrder fails if the reconcile command finds anything.
func (n *node) inOrder() {
	n.t.Helper()
	if list := n.found(); len(list) > 0 {
		n.t.Errorf("found %v", list)
	}
}

// TestReconcilerFindsAndRepairsLeftovers proves that a repair restores a VF that nobody
// has and that has a setting left on its PF, and logs that.
func TestReconcilerFindsAndRepairsLeftovers(t *testing.T) {
	n := newNode(t)
	n.inOrder()
	vf := pfs[1].vfs[2]
	link, v := vfOf(t, vf)
	n.must(netlink.LinkSetVfVlanQos(link, v.ID, 77, 1))
	n.finds(reconcile.Leftover, vf, "VLAN of the VF: wanted 0, found 77")
	if left := n.found("--repair"); len(left) > 0 {
		t.Errorf("not repaired: %v", left)
	}
	n.inOrder()
	n.shows(counts{})
	n.hasRepaired(counts{}) // the command repaired it; the agent does not count that
	log, err := os.ReadFile(n.path("state/repairs.log"))
	n.must(err)
	if !strings.Contains(string(log), vf) || bytes.Count(log, []byte("\n")) != 1 {
		t.Errorf("the log of repairs: %s", log)
	}
}

// TestReconcilerLeavesAllocatedVFsAlone proves that the reconciler leaves allocated VFs
// alone, also while the kubelet does not answer.
func TestReconcilerLeavesAllocatedVFsAlone(t *testing.T) {
	n := newNode(t)
	vf := pfs[1].vfs[3]
	p := n.admit("app", "", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	link, v := vfOf(t, vf)
	n.must(netlink.LinkSetVfVlanQos(link, v.ID, 77, 1))
	n.inOrder()
	n.found("--repair")
	n.must(n.kubelet.DeletePod(types.UID(p.UID)))
	n.inOrder() // the kubelet's checkpoint keeps a pod's devices until the next allocation
	n.admit("next", "", fakekubelet.Pins{"c": pin(pfs[0].vfs[0])}, container("c", left))
	n.finds(reconcile.Leftover, vf)
	n.must(n.kubelet.SetPhase(fakekubelet.Down))
	n.must(os.Remove(n.path("kubelet/device-plugins/kubelet_internal_checkpoint")))
	if list := n.found("--repair"); len(list) > 0 {
		t.Errorf("found %v although it is unknown what is allocated", list)
	}
	if _, now := vfOf(t, vf); now.Vlan != 77 {
		t.Errorf("repaired a VF that may be allocated: VLAN %d", now.Vlan)
	}
	n.must(netlink.LinkSetVfVlanQos(link, v.ID, 0, 0))
}

// TestReconcilerReportsDriftedAndOrphanedVFs proves that some findings are only
// reported, even if a repair is asked for: a pod's VF whose settings on the PF are not
// what the network asks for, and a VF that nobody has and that is not on the host.
func TestReconcilerReportsDriftedAndOrphanedVFs(t *testing.T) {
	n := newNode(t)
	n.define("tagged", left, properties(map[string]any{"vlan": 100})...)
	used, lost := pfs[0].vfs[5], pfs[1].vfs[6]
	p := n.admit("app", "tagged", fakekubelet.Pins{"c": pin(used)}, container("c", left))
	n.succeed("ADD", p)
	uplink, v := vfOf(t, used)
	n.must(netlink.LinkSetVfVlan(uplink, v.ID, 200))
	n.finds(reconcile.Drifted, used, "VLAN of the VF: wanted 100, found 200", "default/app", "default/tagged")
	n.staysFound(reconcile.Drifted)
	n.succeed("DEL", p)

	hidden, err := harness.NewNetNS("hidden")
	n.must(err)
	file, err := os.Open(hidden.Path)
	n.must(err)
	n.must(errors.Join(netlink.LinkSetNsFd(linkOf(t, lost), int(file.Fd())), file.Close()))
	n.finds(reconcile.Orphaned, lost, "its network device is not on the host")
	n.staysFound(reconcile.Orphaned)
	n.must(hidden.Delete())
	n.eventually("the kernel to give "+lost+" back", func() bool { return len(readFunction(t, lost).NetDevs) == 1 })
	n.inOrder()
}

// staysFound fails unless a repair leaves exactly one finding, of this kind.
func (n *node) staysFound(kind reconcile.Kind) {
	n.t.Helper()
	if list := n.found("--repair"); len(list) != 1 || list[0].Kind != kind {
		n.t.Errorf("after a repair found %v, want %s as before", list, kind)
	}
}

// TestRunningAgentRepairs proves that with `reconcile: repair` the agent repairs by
// itself when something changes, except VFs of a PF that its configuration excludes.
func TestRunningAgentRepairs(t *testing.T) {
	n := newNode(t)
	n.serveWith(map[string]any{"reconcile": "repair", "reconcileExclude": []string{linkName(pfs[0].address)}})
	spared, ours := pfs[0].vfs[6], pfs[1].vfs[6]
	for _, vf := range []string{spared, ours} {
		link, v := vfOf(t, vf)
		n.must(netlink.LinkSetVfVlanQos(link, v.ID, 77, 1))
	}
	n.eventually("the agent to repair "+ours, func() bool {
		_, now := vfOf(t, ours)
		return now.Vlan == 0 && slices.ContainsFunc(n.api.Events(), func(e corev1.Event) bool {
			return e.Reason == reconcile.ReasonRepaired && strings.Contains(e.Message, ours)
		})
	})
	n.shows(counts{reconcile.Leftover: 1})
	n.hasRepaired(counts{reconcile.Leftover: 1})
	if list := n.found("--repair"); len(list) != 1 || list[0].Kind != reconcile.Leftover || list[0].Device != spared {
		t.Errorf("found %v, want only %s, whose PF is excluded", list, spared)
	}
	log, err := os.ReadFile(n.path("state/repairs.log"))
	n.must(err)
	if !strings.Contains(string(log), ours) || strings.Contains(string(log), spared) {
		t.Errorf("the log of repairs: %s", log)
	}
	link, v := vfOf(t, spared)
	n.must(netlink.LinkSetVfVlanQos(link, v.ID, 0, 0))
}

// serveWith restarts the agent with additional keys in its configuration.
func (n *node) serveWith(keys map[string]any) {
	n.t.Helper()
	n.must(n.stop(n.agent))
	raw, err := os.ReadFile(n.path("agent.json"))
	n.must(err)
	var conf map[string]any
	n.must(json.Unmarshal(raw, &conf))
	maps.Copy(conf, keys)
	n.json("agent.json", conf)
	n.serve()
}

// TestReconcilerFindsAndRepairsStrandedVFs proves that a VF whose network namespace is
// gone without DEL is found, and repaired once its pod is gone from the kubelet.
func TestReconcilerFindsAndRepairsStrandedVFs(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	vf := pfs[0].vfs[6]
	name := linkOf(t, vf).Attrs().Name
	p := n.admit("app", "left", fakekubelet.Pins{"c": pin(vf)}, container("c", left))
	n.succeed("ADD", p)
	n.inOrder()
	change(t, vf)
	n.must(p.ns.Delete())
	n.eventually("the kernel to give "+vf+" back", func() bool { return len(readFunction(t, vf).NetDevs) == 1 })
	n.finds(reconcile.Stranded, vf, "default/app", p.ID+"@eth0", "default/left")
	n.eventually("the running agent to log the finding", func() bool {
		log, err := os.ReadFile(n.path("agent.log"))
		return err == nil && bytes.Contains(log, []byte(`"kind":"stranded","device":"`+vf))
	})
	n.found("--repair")
	if _, now := vfOf(t, vf); now.Vlan != 100 {
		t.Errorf("repaired a VF of a pod that may start again: VLAN %d", now.Vlan)
	}
	n.must(n.kubelet.DeletePod(types.UID(p.UID)))
	n.admit("next", "", fakekubelet.Pins{"c": pin(pfs[0].vfs[0])}, container("c", left)) // until then the checkpoint keeps the pod's device
	n.found("--repair")
	if got := linkOf(t, vf).Attrs().Name; got != name {
		t.Errorf("%s has the name %s, want %s", vf, got, name)
	}
	n.finds(reconcile.Stranded, vf) // until the pod's DEL
	n.succeed("DEL", p)
	n.inOrder()
}

// TestVFThatDoesNotComeBackIsInQuarantine proves that a VF that its pod has moved to
// another network namespace is in quarantine after the pod's DEL: the next pod is
// refused until the VF is back.
func TestVFThatDoesNotComeBackIsInQuarantine(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	vf := pfs[0].vfs[4]
	pins := fakekubelet.Pins{"c": pin(vf)}
	p := n.admit("thief", "left", pins, container("c", left))
	n.succeed("ADD", p)
	hidden, err := harness.NewNetNS("hidden")
	n.must(err)
	n.must(p.ns.Do(func() error {
		link, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		fd, err := os.Open(hidden.Path)
		if err != nil {
			return err
		}
		defer fd.Close()
		return netlink.LinkSetNsFd(link, int(fd.Fd()))
	}))
	n.must(p.ns.Delete())
	n.succeed("DEL", p)
	n.finds(reconcile.Quarantined, vf, "network device: wanted", "default/thief", "default/left")
	n.must(n.kubelet.DeletePod(types.UID(p.UID)))
	next := n.admit("next", "left", pins, container("c", left))
	n.refuse(next, 116, "in quarantine", vf, "default/thief", "default/next", "--accept "+vf)
	n.succeed("DEL", next)
	n.must(hidden.Delete())
	n.eventually("the kernel to give "+vf+" back", func() bool { return len(readFunction(t, vf).NetDevs) == 1 })
	n.succeed("ADD", next)
	n.inOrder()
	n.stands(next, vf)
	n.succeed("DEL", next)
}

// TestQuarantineEndsByHand proves that the administrator can accept a VF in quarantine
// as it is.
func TestQuarantineEndsByHand(t *testing.T) {
	n := newNode(t)
	vf := pfs[0].vfs[4]
	uplink, v := vfOf(t, vf)
	before, err := sriov.Host{}.Snapshot(vf)
	n.must(err)
	to, err := json.Marshal(before)
	n.must(err)
	n.must(journal.Dir{Path: n.path("state")}.Quarantine(journal.Quarantine{Device: vf, Reason: "a test", To: to}))
	n.inOrder() // it is as it must be
	n.must(netlink.LinkSetVfTrust(uplink, v.ID, v.Trust != 1))
	n.finds(reconcile.Quarantined, vf, "trust of the VF")
	if list := n.found("--accept", vf); len(list) > 0 {
		t.Errorf("found %v", list)
	}
	n.must(netlink.LinkSetVfTrust(uplink, v.ID, v.Trust == 1))
}
