package fakekubelet_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// allocated makes a claim with these devices known, as if the scheduler had
// allocated it.
func (k *kubelet) allocated(name string, devices ...fakekubelet.ClaimDevice) {
	k.SetClaim(fakekubelet.Claim{Name: name, UID: "uid-of-" + name, Devices: devices})
}

func claimDevice(name, request string, metadata map[string]string) fakekubelet.ClaimDevice {
	return fakekubelet.ClaimDevice{Metadata: metadata, ClaimDevice: checkpoint.ClaimDevice{Driver: "vf.example", Pool: "node1", Name: name, Requests: []string{request}}}
}

// claiming returns a container that uses claims of its pod.
func claiming(name string, claims ...string) corev1.Container {
	c := corev1.Container{Name: name}
	for _, claim := range claims {
		c.Resources.Claims = append(c.Resources.Claims, corev1.ResourceClaim{Name: claim})
	}
	return c
}

// withClaims adds claims to a pod, each under its own name.
func withClaims(pod *corev1.Pod, claims ...string) *corev1.Pod {
	for _, name := range claims {
		pod.Spec.ResourceClaims = append(pod.Spec.ResourceClaims, corev1.PodResourceClaim{Name: name, ResourceClaimName: &name})
	}
	return pod
}

// claimsOnDisk describes the checkpoint of claims, sorted.
func (k *kubelet) claimsOnDisk() string {
	k.t.Helper()
	raw, err := os.ReadFile(k.ClaimCheckpointPath())
	k.must(err)
	c, err := checkpoint.DecodeClaims(raw)
	k.must(err)
	var out []string
	for _, claim := range c.All {
		out = append(out, fmt.Sprintf("%s %v %d", claim.Name, claim.PodUIDs, len(claim.Devices)))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// claimed asks Get for the claimed devices of each container.
func (k *kubelet) claimed(pod string) string {
	k.t.Helper()
	resp, err := k.resources.Get(k.t.Context(), &resv1.GetPodResourcesRequest{PodNamespace: "default", PodName: pod})
	k.must(err)
	var out []string
	for _, c := range resp.GetPodResources().GetContainers() {
		for _, r := range c.GetDynamicResources() {
			for _, d := range r.GetClaimResources() {
				out = append(out, c.GetName()+"="+r.GetClaimName()+"/"+d.GetDeviceName())
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestClaimsOfPods(t *testing.T) {
	k := start(t)
	k.allocated("nics", claimDevice("vf-1", "a", map[string]string{"resource.kubernetes.io/pciBusID": "0000:21:10.0"}), claimDevice("vf-2", "b/fast", map[string]string{}))
	k.allocated("gpus", claimDevice("gpu", "g", nil))
	pod := podOf("one", claiming("c1", "nics", "gpus"), claiming("c2", "nics"))
	pod.UID = "u1"
	k.must(errOf(k.AddPod(withClaims(pod, "nics", "gpus"), nil)))
	other := podOf("two", claiming("c1", "nics"))
	other.UID = "u2"
	k.must(errOf(k.AddPod(withClaims(other, "nics"), nil)))
	const both = "c1=gpus/gpu c1=nics/vf-1 c1=nics/vf-2 c2=nics/vf-1 c2=nics/vf-2"
	for range 2 { // before and after a restart
		if got := k.claimed("one"); got != both {
			t.Errorf("pod one has %s, want %s", got, both)
		}
		if got, want := k.claimsOnDisk(), "gpus [u1] 1, nics [u1 u2] 2"; got != want {
			t.Errorf("on disk %s, want %s", got, want)
		}
		k.must(k.SetPhase(fakekubelet.Down))
		k.must(k.SetPhase(fakekubelet.Normal))
	}
	file := func(request string) string {
		return k.PluginsDir() + "/vf.example/dra-device-metadata/default_nics/" + request + "/metadata.json"
	}
	for request, part := range map[string]string{"a": `"string": "0000:21:10.0"`, "b": `"name": "b/fast"`} {
		raw, err := os.ReadFile(file(request))
		k.must(err)
		if !strings.Contains(string(raw), part) || !strings.Contains(string(raw), `"uid": "uid-of-nics"`) {
			t.Errorf("metadata of request %s lacks %s: %s", request, part, raw)
		}
	}
	k.must(k.DeletePod("u1"))
	if got, want := k.claimsOnDisk(), "nics [u2] 2"; got != want {
		t.Errorf("on disk %s, want %s", got, want)
	}
	k.must(k.DeletePod("u2"))
	if _, err := os.Stat(file("a")); !os.IsNotExist(err) || k.claimsOnDisk() != "" {
		t.Errorf("a claim without pods still exists: %v, %s", err, k.claimsOnDisk())
	}
}

func errOf(_ *corev1.Pod, err error) error { return err }

// A pod waits for a claim that is not allocated; once it is, the pod starts.
func TestClaimThatIsNotAllocated(t *testing.T) {
	k := start(t)
	pod, err := k.AddPod(withClaims(podOf("one", claiming("c1", "nics")), "nics"), nil)
	if !errors.Is(err, fakekubelet.ErrClaim) || pod == nil {
		t.Fatal(pod, err)
	}
	if got := k.claimed("one"); got != "" {
		t.Errorf("it has %s", got)
	}
	k.allocated("nics", claimDevice("vf-1", "a", nil))
	k.must(errOf(k.AddPod(pod, nil)))
	if got := k.claimed("one"); got != "c1=nics/vf-1" {
		t.Errorf("it has %s", got)
	}
	template := podOf("two", claiming("c1", "made"))
	template.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "made", ResourceClaimTemplateName: new("t")}}
	if _, err := k.AddPod(template, nil); !errors.Is(err, fakekubelet.ErrClaim) {
		t.Errorf("a claim that is not created from its template yet: %v", err)
	}
}

// The scheduler allocates the claim behind extended resources and names it in the
// pod's status, which the Pods API does not serve.
func TestClaimBehindExtendedResources(t *testing.T) {
	k := start(t)
	k.allocated("extended", claimDevice("vf-1", "r", nil))
	pod := podOf("one", claiming("c1"), claiming("c2"))
	pod.UID = types.UID("u1")
	pod.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "extended",
		RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: "c2", ResourceName: vfs, RequestName: "r"}}}
	k.must(errOf(k.AddPod(pod, nil)))
	if got := k.claimed("one"); got != "c2=extended/vf-1" {
		t.Errorf("it has %s", got)
	}
	resp, err := k.pods.GetPod(t.Context(), &podsv1.GetPodRequest{PodUID: "u1"})
	k.must(err)
	var served corev1.Pod
	k.must(served.Unmarshal(resp.GetPod()))
	if served.Status.ExtendedResourceClaimStatus != nil {
		t.Error("the Pods API serves a status that a kubelet does not maintain")
	}
	k.Shadow(pod)
	k.must(k.DeletePod("u1"))
	if got := k.claimed("one"); got != "c2=extended/vf-1" {
		t.Errorf("its shadow has %s", got)
	}
}
