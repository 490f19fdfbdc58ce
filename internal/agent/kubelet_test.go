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
