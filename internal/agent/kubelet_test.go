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
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// A VF that a claim has is no leftover, and one that may be a claim's is none
// either.
func TestClaimsDevicesAreAllocated(t *testing.T) {
	const plugins, claims, untold = "0000:21:10.0", "0000:21:10.2", "vf-2"
	// Not the test's own directory, whose name can be longer than a socket's may be.
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
	if err := fake.SetDevices("vendor.example/vfs", fakekubelet.Device{ID: plugins}); err != nil {
		t.Fatal(err)
	}
	device := func(name string, attributes map[string]string) fakekubelet.ClaimDevice {
		return fakekubelet.ClaimDevice{Metadata: attributes, ClaimDevice: checkpoint.ClaimDevice{Driver: "vf.example", Pool: "node1", Name: name, Requests: []string{"r"}}}
	}
	fake.SetClaim(fakekubelet.Claim{Name: "told", UID: "c1", Devices: []fakekubelet.ClaimDevice{device("vf-1", map[string]string{podresources.AttributePCIBusID: claims})}})
	fake.SetClaim(fakekubelet.Claim{Name: "untold", UID: "c2", Devices: []fakekubelet.ClaimDevice{device(untold, nil)}})
	add := func(name, claim string, limits corev1.ResourceList) *corev1.Pod {
		p, err := fake.AddPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{
			ResourceClaims: []corev1.PodResourceClaim{{Name: "c", ResourceClaimName: &claim}},
			Containers:     []corev1.Container{{Name: "c1", Resources: corev1.ResourceRequirements{Limits: limits, Claims: []corev1.ResourceClaim{{Name: "c"}}}}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := add("first", "told", corev1.ResourceList{"vendor.example/vfs": *resource.NewQuantity(1, resource.DecimalSI)})
	conf := Config{KubeletDir: fake.Dir()}
	if err := conf.complete(); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"", "podResources", "claimCheckpoint"} {
		c := conf
		switch left {
		case "podResources":
			c.PodResources = ""
		case "claimCheckpoint":
			c.ClaimCheckpoint = ""
		}
		k := c.kubelet(nil)
		t.Cleanup(func() { _ = k.close() })
		got, err := k.allocated(t.Context())
		if ids := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(ids, []string{plugins, claims}) {
			t.Errorf("without %q: %v, %v", left, ids, err)
		}
		held, err := k.holders(t.Context())
		if h := held[claims]; err != nil || left != "podResources" && h.Pod != "default/first" || left != "claimCheckpoint" && h.PodUID != string(first.UID) {
			t.Errorf("without %q the claim's device is held by %+v, %v", left, h, err)
		}
	}
	add("second", "untold", nil)
	k := conf.kubelet(nil)
	t.Cleanup(func() { _ = k.close() })
	if got, err := k.allocated(t.Context()); err == nil || !strings.Contains(err.Error(), untold) {
		t.Errorf("with a device of which nobody says what it is: %v, %v", got, err)
	}
	if held, err := k.holders(t.Context()); err != nil || len(held) != 2 {
		t.Errorf("holders %v, %v", held, err)
	}
}
