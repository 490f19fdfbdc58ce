package agent

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

const (
	leftoverVF = "0000:21:10.4"
	otherVF    = "0000:21:10.6"
)

// vfNode is a node with a kubelet that advertises two VFs, the first of which has a
// leftover VLAN.
type vfNode struct {
	harness.Place
	kubelet *fakekubelet.Kubelet
	tree    *sriovtest.Tree
	conf    configfile.Agent
}

func newVFNode(t *testing.T) *vfNode {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	n := &vfNode{Place: harness.NewPlace(t), tree: tree}
	n.conf = configfile.Agent{KubeletDir: n.Path("kubelet"), CNIDir: n.Path("state"), SysRoot: tree.Root(), Node: "node1"}
	n.Must(n.conf.Complete())
	n.tree.AddIGB()
	n.Must(n.tree.Err())
	var err error
	n.kubelet, err = fakekubelet.Start(n.conf.KubeletDir)
	n.Must(err)
	t.Cleanup(n.kubelet.Stop)
	n.Must(n.kubelet.SetDevices("example.com/vfs", fakekubelet.Device{ID: leftoverVF}, fakekubelet.Device{ID: otherVF}))
	n.Must(n.tree.Host().Links.SetVF("enp33s0", 2, sriov.PropertyVLAN, sriov.VFState{VLAN: 77}))
	return n
}

// reconciler returns the node's reconciler; its connections end with the test.
func (n *vfNode) reconciler() *reconcile.Reconciler {
	k := newKubelet(&n.conf, nil)
	n.T.Cleanup(func() { n.Must(k.close()) })
	r := reconcilerOf(&n.conf, k)
	r.Host = n.tree.Host()
	return r
}

// admit adds a pod that gets the VF.
func (n *vfNode) admit(name, vf string) types.UID {
	n.T.Helper()
	pod, err := n.kubelet.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
			Limits: corev1.ResourceList{"example.com/vfs": resource.MustParse("1")},
		}}}},
	}, fakekubelet.Pins{"c": {"example.com/vfs": {vf}}})
	n.Must(err)
	return pod.UID
}

// spared fails unless nothing is found and a repair changes nothing.
func (n *vfNode) spared(when string) {
	n.T.Helper()
	found, err := n.reconciler().Scan(n.T.Context())
	if len(found) > 0 {
		n.T.Errorf("%s: found %v, %v", when, found, err)
	}
	leftover := reconcile.Finding{Kind: reconcile.Leftover, Device: leftoverVF}
	if err := n.reconciler().Repair(n.T.Context(), leftover); err == nil {
		n.T.Errorf("%s: repaired", when)
	}
	if s, err := n.tree.Host().Snapshot(leftoverVF); err != nil || s.VF.VLAN != 77 {
		n.T.Errorf("%s: %+v, %v", when, s.VF, err)
	}
}

// TestKubeletRestartWindow: for seconds after a kubelet's restart its lists are empty,
// or name only the first pods, while pods hold devices. No device counts as free then.
func TestKubeletRestartWindow(t *testing.T) {
	n := newVFNode(t)
	pod := n.admit("app", leftoverVF)
	for _, phase := range []fakekubelet.Phase{fakekubelet.Down, fakekubelet.Empty, fakekubelet.Registered, fakekubelet.GetOnly, fakekubelet.Normal} {
		n.Must(n.kubelet.SetPhase(phase))
		n.spared("with the checkpoint")
	}
	file := n.conf.Checkpoint
	for name, checkpoint := range map[string]string{"not configured": "", "absent": n.conf.CNIDir + "/none"} {
		n.conf.Checkpoint = checkpoint
		n.Must(n.kubelet.SetPhase(fakekubelet.Empty))
		n.spared("List empty, checkpoint " + name)
		n.Must(n.kubelet.SetPhase(fakekubelet.Normal))
		n.spared("List of one pod, checkpoint " + name)
	}
	n.conf.Checkpoint = file
	// The same VF is found once the kubelet has forgotten its pod.
	n.Must(n.kubelet.DeletePod(pod))
	n.admit("next", otherVF)
	found, err := n.reconciler().Scan(t.Context())
	if err != nil || len(found) != 1 || found[0].Kind != reconcile.Leftover || found[0].Device != leftoverVF {
		t.Errorf("found %v, %v", found, err)
	}
	n.conf.Checkpoint = "" // then the listed pods may be the first of many
	n.spared("List of another pod alone")
}

// A device plugin may name its VFs as it likes. A VF that a pod holds never counts as
// free, and a VF that no ID names is left alone while a pod may hold it.
func TestDevicesOfAnyName(t *testing.T) {
	for name, tc := range map[string]struct {
		id, away string
		problem  string
	}{
		"plain":   {id: leftoverVF},
		"netdev":  {id: "enp33s16f4"},
		"away":    {id: "enp33s16f4", away: "enp33s16f4", problem: `"enp33s16f4" of example.com/vfs`},
		"number":  {id: "vf-2", problem: `"vf-2" of example.com/vfs`},
		"address": {id: "0000:21:10.4-0", problem: `"0000:21:10.4-0" of example.com/vfs`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newVFNode(t)
			n.Must(os.MkdirAll(n.conf.CNIDir, 0o700))
			n.Must(n.kubelet.SetDevices("example.com/vfs", fakekubelet.Device{ID: tc.id}, fakekubelet.Device{ID: otherVF}))
			n.admit("app", tc.id)
			if tc.away != "" {
				n.tree.RemoveNetDev(tc.away)
			}
			r := n.reconciler()
			found, err := r.Scan(t.Context())
			if len(found) > 0 || (err != nil) != (tc.problem != "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
				t.Errorf("found %v, %v, want %q", found, err, tc.problem)
			}
			if err := r.Repair(t.Context(), reconcile.Finding{Kind: reconcile.Leftover, Device: leftoverVF}); !errors.Is(err, reconcile.ErrNotRepaired) {
				t.Errorf("repair: %v", err)
			}
			// A VF that a device plugin advertises by its address is not the pod's.
			n.Must(n.tree.Host().Links.SetVF("enp33s0", 3, sriov.PropertyVLAN, sriov.VFState{VLAN: 78}))
			found, _ = r.Scan(t.Context())
			if len(found) != 1 || found[0].Device != otherVF {
				t.Fatalf("found %v", found)
			}
			n.Must(r.Repair(t.Context(), found[0]))
			held, err := r.Allocated(t.Context())
			if n.Must(err); held.Given[otherVF] {
				t.Errorf("given %+v", held)
			}
		})
	}
}

// A dead sandbox's VF is repaired only while the kubelet has allocated it to nobody, not
// even to the sandbox's own pod, which may be about to start again.
func TestStrandedVFsThatAreGivenOnAreLeftAlone(t *testing.T) {
	for name, c := range map[string]struct {
		uid, given string
		repaired   bool
	}{
		"own":     {"app", leftoverVF, false},
		"another": {"before", leftoverVF, false},
		"nobody":  {"before", otherVF, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newVFNode(t)
			n.admit("app", c.given)
			before, err := n.tree.Host().Snapshot(leftoverVF)
			n.Must(err)
			before.VF.VLAN = 0
			raw, err := json.Marshal(before)
			n.Must(err)
			r := n.reconciler()
			key := journal.Key{ContainerID: "c", IfName: "eth0"}
			entry, err := r.Journal.Begin(t.Context(), key, &plan.Plan{
				Pod: plan.Pod{Namespace: "shop", Name: "app", UID: c.uid}, NetNS: filepath.Join(t.TempDir(), "gone"),
				Attachments: []plan.Attachment{{Name: "shop/fast", IfName: "net1", Device: &plan.Device{ID: leftoverVF, PCIAddress: leftoverVF, PF: "0000:21:00.0", VFIndex: before.VFIndex}}},
			})
			n.Must(err)
			_, err = r.Journal.Claim(t.Context(), leftoverVF, key, nil)
			n.Must(err)
			n.Must(entry.Append(journal.Step{Phase: journal.Trying, Before: raw}))
			found, err := r.Scan(t.Context())
			n.Must(err)
			if len(found) != 1 || found[0].Kind != reconcile.Stranded {
				t.Fatalf("found %v", found)
			}
			if err := r.Repair(t.Context(), found[0]); (err == nil) != c.repaired {
				t.Errorf("repair: %v", err)
			}
			if s, err := n.tree.Host().Snapshot(leftoverVF); err != nil || (s.VF.VLAN == 0) != c.repaired {
				t.Errorf("%+v, %v", s.VF, err)
			}
		})
	}
}

// PFs are excluded in any spelling, and entries that cannot name a PF are refused.
func TestConfigOfExcludedPFs(t *testing.T) {
	c := configfile.Agent{ReconcileExclude: []string{"0000:5E:00.0", "5e:00.1", "enp33s0 "}}
	if err := c.Complete(); err != nil || !slices.Equal(c.ReconcileExclude, []string{"0000:5e:00.0", "0000:5e:00.1", "enp33s0"}) {
		t.Errorf("%q, %v", c.ReconcileExclude, err)
	}
	c.ReconcileExclude = []string{"0000:5e:0.0"}
	if err := c.Complete(); err == nil || !strings.Contains(err.Error(), `"reconcileExclude": "0000:5e:0.0" is neither`) {
		t.Error(err)
	}
}

// TestKubeletsDirectoriesAreWatched: the reconciler watches the directories whose
// changes mean that the kubelet started or allocated.
func TestKubeletsDirectoriesAreWatched(t *testing.T) {
	n := newVFNode(t)
	got := n.reconciler().Watch
	for _, dir := range []string{"device-plugins", "pod-resources"} {
		if !slices.Contains(got, filepath.Join(n.conf.KubeletDir, dir)) {
			t.Errorf("%s is not among %v", dir, got)
		}
	}
}

func TestFindingsBecomeEvents(t *testing.T) {
	srv := kubetest.Start()
	t.Cleanup(srv.Stop)
	client, err := kube.NewClient(&rest.Config{Host: srv.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	tell := eventsOf(kube.NewWriter(client, "manifold", "node1"), slog.New(slog.DiscardHandler))
	f := reconcile.Finding{Device: leftoverVF, Pod: "shop/web", PodUID: "1", Sandbox: "c@eth0", Network: "shop/fast"}
	for _, kind := range []reconcile.Kind{reconcile.Drifted, reconcile.Vanished, reconcile.Replaced, reconcile.Stranded} {
		f.Kind = kind
		tell(t.Context(), reconcile.Reason(kind), f)
	}
	tell(t.Context(), reconcile.ReasonRepaired, f)
	var got []string
	for _, e := range srv.Events() {
		o := e.InvolvedObject
		got = append(got, strings.Join([]string{e.Type, e.Reason, o.Kind, o.Namespace, o.Name}, " "))
		if !strings.Contains(e.Message, leftoverVF) || !strings.Contains(e.Message, "shop/web") {
			t.Errorf("message %q", e.Message)
		}
	}
	slices.Sort(got)
	want := []string{"Normal VFRepaired Node  node1", "Warning VFDrifted Pod shop web", "Warning VFReplaced Pod shop web", "Warning VFStranded Node  node1", "Warning VFVanished Pod shop web"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAccept(t *testing.T) {
	n := newVFNode(t)
	if err := Accept(t.Context(), &n.conf, "eth0"); !errors.Is(err, sriov.ErrAddress) || !strings.Contains(err.Error(), "PCI address") {
		t.Errorf("%v", err)
	}
	n.Must(os.MkdirAll(n.conf.CNIDir, 0o700))
	n.Must(Accept(t.Context(), &n.conf, leftoverVF)) // not in quarantine: nothing to do
}
