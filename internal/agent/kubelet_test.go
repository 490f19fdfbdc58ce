package agent

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// Devices of the node of startClaims: one of a device plugin, one of a claim, and one
// of a claim whose device cannot be identified.
const pluginsVF, claimsVF, untoldVF = "0000:21:10.0", "0000:21:10.2", "vf-2"

// startClaims starts a kubelet with those devices.
func startClaims(t *testing.T) *fakekubelet.Kubelet {
	t.Helper()
	// Not in the test's own directory: the path can be too long for a socket.
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	fake, err := fakekubelet.Start(filepath.Join(dir, "kubelet"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Stop)
	if err := fake.SetDevices("vendor.example/vfs", fakekubelet.Device{ID: pluginsVF}); err != nil {
		t.Fatal(err)
	}
	for claim, d := range map[string]fakekubelet.ClaimDevice{
		"told":   {Metadata: map[string]string{podresources.AttributePCIBusID: claimsVF}, ClaimDevice: checkpoint.ClaimDevice{Name: "vf-1"}},
		"untold": {ClaimDevice: checkpoint.ClaimDevice{Name: untoldVF}},
	} {
		d.Driver, d.Pool, d.Requests = "vf.example", "node1", []string{"r"}
		fake.SetClaim(fakekubelet.Claim{Name: claim, UID: "uid-of-" + claim, Devices: []fakekubelet.ClaimDevice{d}})
	}
	return fake
}

// admit admits a pod with a claim and with vfs VFs of the device plugin.
func admit(t *testing.T, fake *fakekubelet.Kubelet, claim string, vfs int64) *corev1.Pod {
	t.Helper()
	p, err := fake.AddPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + claim, Namespace: "default"}, Spec: corev1.PodSpec{
		ResourceClaims: []corev1.PodResourceClaim{{Name: "c", ResourceClaimName: &claim}},
		Containers: []corev1.Container{{Name: "c1", Resources: corev1.ResourceRequirements{
			Limits: corev1.ResourceList{"vendor.example/vfs": *resource.NewQuantity(vfs, resource.DecimalSI)}, Claims: []corev1.ResourceClaim{{Name: "c"}},
		}}},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A VF that a claim holds is no leftover, whichever source knows the claim.
func TestClaimsDevicesAreAllocated(t *testing.T) {
	fake := startClaims(t)
	pod := admit(t, fake, "told", 1)
	for left, want := range map[string]nodeview.Holder{
		"":                {Pod: "default/pod-told", Container: "c1", PodUID: string(pod.UID)},
		"podResources":    {PodUID: string(pod.UID)},
		"claimCheckpoint": {Pod: "default/pod-told", Container: "c1"},
	} {
		t.Run("without "+left, func(t *testing.T) {
			k := kubeletOf(t, fake, left)
			got, err := k.allocated(t.Context())
			if err != nil || !slices.Equal(slices.Sorted(maps.Keys(got.Given)), []string{pluginsVF, claimsVF}) || len(got.Opaque) > 0 || !got.Advertised[pluginsVF] {
				t.Errorf("allocated %+v, %v", got, err)
			}
			held, err := k.holders(t.Context())
			if h := held[claimsVF]; err != nil || h != want {
				t.Errorf("the claim's device is held by %+v, %v; want %+v", h, err, want)
			}
		})
	}
}

// A claim's device that cannot be identified may be any VF.
func TestClaimsDeviceThatCannotBeTold(t *testing.T) {
	fake := startClaims(t)
	admit(t, fake, "told", 1)
	admit(t, fake, "untold", 0)
	k := kubeletOf(t, fake, "")
	if got, err := k.allocated(t.Context()); err == nil || !strings.Contains(err.Error(), untoldVF) {
		t.Errorf("allocated %v, %v", got, err)
	}
	if held, err := k.holders(t.Context()); err != nil || len(held) != 2 {
		t.Errorf("holders %v, %v", held, err)
	}
}

// Devices are compared by PCI function, however device plugins name them.
func TestFunctionOfADevice(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddSwitchdev()
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	k := &kubelet{fs: tree.FS()}
	for id, want := range map[string]struct {
		function string
		opaque   bool
	}{
		"0000:AB:10.0": {"0000:ab:10.0", false}, "mlx5_core.sf.2": {"0000:08:00.0", false}, "enp8s0f0s88": {"0000:08:00.0", true},
		"mlx5_core.sf.9": {"", true}, "vf-2": {"", true}, "0000:ab:10.0-0": {"", true}, "": {"", true},
	} {
		if got := k.function(id); got != want.function || k.opaque(id) != want.opaque {
			t.Errorf("%q: %q, opaque %t, want %+v", id, got, k.opaque(id), want)
		}
	}
}

// kubeletOf connects to a kubelet, without the source that left names.
func kubeletOf(t *testing.T, fake *fakekubelet.Kubelet, left string) *kubelet {
	t.Helper()
	c := configfile.Agent{KubeletDir: fake.Dir()}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	switch left {
	case "podResources":
		c.PodResources = ""
	case "claimCheckpoint":
		c.ClaimCheckpoint = ""
	}
	k := newKubelet(&c, nil)
	t.Cleanup(func() { _ = k.close() })
	return k
}

// Device plugins choose their IDs on their own, so two may choose the same.
func TestEqualIDsOfTwoResources(t *testing.T) {
	const a, b = "vendor.example/a", "vendor.example/b"
	fake := startClaims(t)
	uids := map[string]string{}
	for _, name := range []string{a, b} {
		if err := fake.SetDevices(name, fakekubelet.Device{ID: "0"}); err != nil {
			t.Fatal(err)
		}
		p, err := fake.AddPod(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "of-" + filepath.Base(name), Namespace: "default"},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c1", Resources: corev1.ResourceRequirements{
				Limits: corev1.ResourceList{corev1.ResourceName(name): resource.MustParse("1")}}}}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		uids[name] = string(p.UID)
	}
	for left, podA := range map[string]string{"": "default/of-a", "podResources": ""} {
		got, err := kubeletOf(t, fake, left).allocated(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		podB := strings.Replace(podA, "of-a", "of-b", 1)
		want := []reconcile.Opaque{{Resource: a, ID: "0", Pod: podA, PodUID: uids[a]}, {Resource: b, ID: "0", Pod: podB, PodUID: uids[b]}}
		if !slices.Equal(got.Opaque, want) {
			t.Errorf("without %q: %+v, want %+v", left, got.Opaque, want)
		}
	}
}

// The checkpoint may still have a VF under a resource that another device plugin has
// taken over since.
func TestHolderOfAVFUnderTwoResources(t *testing.T) {
	for _, older := range []string{"vendor.example/a", "vendor.example/z"} {
		fake := startClaims(t)
		pod := admit(t, fake, "told", 1)
		k := kubeletOf(t, fake, "")
		c, err := k.file.Load()
		if err != nil {
			t.Fatal(err)
		}
		old := checkpoint.Entry{PodUID: "uid-old", Container: "c1", Resource: older, Devices: []checkpoint.NUMADevices{{Node: checkpoint.NoNUMA, IDs: []string{pluginsVF}}}}
		raw, err := checkpoint.Encode(append(c.Entries, old), c.Registered)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "checkpoint")
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		k.file = checkpoint.NewFile(file)
		held, err := k.holders(t.Context())
		if h := held[pluginsVF]; err != nil || h.PodUID != string(pod.UID) || h.Pod != "default/pod-told" {
			t.Errorf("beside %s: %+v, %v", older, h, err)
		}
	}
}
