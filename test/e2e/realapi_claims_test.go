//go:build apiserver

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// pageResources are the API resources of the kinds on docs/claims.md.
var pageResources = map[string]schema.GroupVersionResource{
	"ResourceClaimTemplate":       resourcev1.SchemeGroupVersion.WithResource("resourceclaimtemplates"),
	"NetworkAttachmentDefinition": {Group: "k8s.cni.cncf.io", Version: "v1", Resource: "network-attachment-definitions"},
	"Pod":                         corev1.SchemeGroupVersion.WithResource("pods"),
	"ClusterRole":                 rbacv1.SchemeGroupVersion.WithResource("clusterroles"),
}

// createPage creates the objects of docs/claims.md.
func (n *realNode) createPage() {
	n.t.Helper()
	page, err := os.ReadFile("../../docs/claims.md")
	n.must(err)
	dyn, err := dynamic.NewForConfig(n.server.Config())
	n.must(err)
	created := map[string]bool{}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(page, -1) {
		docs := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(block[1])))
		for {
			raw := make([]byte, len(block[1]))
			size, err := docs.Read(raw)
			if errors.Is(err, io.EOF) {
				break
			}
			n.must(err)
			var obj unstructured.Unstructured
			n.must(yaml.Unmarshal(raw[:size], &obj.Object))
			var at dynamic.ResourceInterface = dyn.Resource(pageResources[obj.GetKind()])
			switch obj.GetKind() {
			case "Pod":
				n.must(unstructured.SetNestedField(obj.Object, "node1", "spec", "nodeName"))
				fallthrough
			case "ResourceClaimTemplate", "NetworkAttachmentDefinition":
				at = dyn.Resource(pageResources[obj.GetKind()]).Namespace("default")
			}
			_, err = at.Create(context.Background(), &obj, metav1.CreateOptions{FieldValidation: "Strict"})
			n.must(err)
			created[obj.GetKind()] = true
		}
	}
	if len(created) != len(pageResources) {
		n.t.Fatalf("the page has objects of the kinds %v", created)
	}
}

// publish creates a ResourceSlice with devices of vendor.example/vfs, by name.
func (n *realNode) publish(name string, generation int64, ids map[string]string) {
	n.t.Helper()
	n.createSlice(devicesSlice(name, generation, ids))
}

// publishPartitions creates a pool of devices that each consume half of the
// counters of one function.
func (n *realNode) publishPartitions(name string, generation int64, ids map[string]string) {
	n.t.Helper()
	counters := func(value string) map[string]resourcev1.Counter {
		return map[string]resourcev1.Counter{"queues": {Value: resource.MustParse(value)}}
	}
	devices := devicesSlice(name, generation, ids)
	devices.Spec.Pool.ResourceSliceCount = 2
	for i := range devices.Spec.Devices {
		devices.Spec.Devices[i].ConsumesCounters = []resourcev1.DeviceCounterConsumption{{CounterSet: "function", Counters: counters("8")}}
	}
	whole := devicesSlice(name+"-counters", generation, nil)
	whole.Spec.Pool.ResourceSliceCount = 2
	whole.Spec.SharedCounters = []resourcev1.CounterSet{{Name: "function", Counters: counters("16")}}
	n.createSlice(whole)
	n.createSlice(devices)
}

// createSlice creates a slice and fails if the API server drops parts of it.
func (n *realNode) createSlice(slice *resourcev1.ResourceSlice) {
	n.t.Helper()
	stored, err := n.client.ResourceV1().ResourceSlices().Create(context.Background(), slice, metav1.CreateOptions{})
	n.must(err)
	if len(stored.Spec.SharedCounters) != len(slice.Spec.SharedCounters) || len(stored.Spec.Devices) != len(slice.Spec.Devices) {
		n.t.Fatalf("the API server dropped parts of the slice: %+v", stored.Spec)
	}
}

// devicesSlice returns a slice of a pool with devices by name.
func devicesSlice(name string, generation int64, ids map[string]string) *resourcev1.ResourceSlice {
	slice := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourcev1.ResourceSliceSpec{
		Driver: driver, NodeName: new("node1"), Pool: resourcev1.ResourcePool{Name: "node1", Generation: generation, ResourceSliceCount: 1},
	}}
	for device, id := range ids {
		slice.Spec.Devices = append(slice.Spec.Devices, resourcev1.Device{Name: device, Attributes: map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{
			podresources.AttributeDeviceID: {StringValue: &id}, podresources.AttributeResourceName: {StringValue: new("vendor.example/vfs")},
		}})
	}
	return slice
}

// admitClaiming admits the page's pod under a name, with its claim created and
// allocated as controller, scheduler and kubelet would.
func (n *realNode) admitClaiming(name string, devices ...fakekubelet.ClaimDevice) *pod {
	n.t.Helper()
	p := n.get("packet-gateway")
	if name != p.Name {
		p.ObjectMeta = metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: p.Annotations}
		p.Status = corev1.PodStatus{}
		var err error
		p, err = n.client.CoreV1().Pods("default").Create(context.Background(), p, metav1.CreateOptions{})
		n.must(err)
	}
	claim := name + "-nics-x2b4c"
	p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "nics", ResourceClaimName: &claim}}
	p, err := n.client.CoreV1().Pods("default").UpdateStatus(context.Background(), p, metav1.UpdateOptions{})
	n.must(err)
	n.kubelet.SetClaim(fakekubelet.Claim{Name: claim, UID: "uid-of-" + claim, Devices: devices})
	_, err = n.kubelet.AddPod(p, nil)
	n.must(err)
	return n.sandbox(name, string(p.UID))
}

// TestRealAPIClaims proves that ResourceSlices describe the devices of claims, with
// the objects and the permissions of the page. The agent uses one watch; without an
// agent it takes one list.
func TestRealAPIClaims(t *testing.T) {
	n := newRealNode(t)
	n.createPage()
	n.agentConfig(map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "podsAPI": "-",
		"snapshot": n.path("state/snapshot"), "apiServer": n.agent.Kubeconfig, "resourceSlices": true,
	})
	agent := n.serve()
	control, data, other := n.device("nic0"), n.device("nic1"), n.device("nic2")
	n.publish("first", 1, map[string]string{"dev-0": control, "dev-1": data})
	p := n.admitClaiming("packet-gateway", claimed("dev-0", "control", nil), claimed("dev-1", "data", nil))
	n.refuse("ADD", p, 11, "ResourceSlices", "forbidden", "default/packet-gateway", "vendor.example/vfs")
	n.succeed("DEL", p)
	_, err := n.client.RbacV1().ClusterRoleBindings().Create(context.Background(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "slices"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "manifold-resourceslices"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: n.agent.Name}},
	}, metav1.CreateOptions{})
	n.must(err)
	n.eventuallyAdds(p)
	n.wantInterfaces(p, map[string]string{"net1": "nic1", "net2": "nic0"})
	claims := n.get("packet-gateway").Status.ResourceClaimStatuses
	if len(claims) != 1 || claims[0].ResourceClaimName == nil || *claims[0].ResourceClaimName != "packet-gateway-nics-x2b4c" {
		t.Errorf("the pod's claim statuses are %+v", claims)
	}
	n.succeed("DEL", p)

	// A new generation of the pool arrives by the watch.
	n.publish("second", 2, map[string]string{"dev-0": other, "dev-1": data})
	again := n.admitClaiming("again", claimed("dev-0", "control", nil), claimed("dev-1", "data", nil))
	n.eventuallyOn(again, map[string]string{"net1": "nic1", "net2": "nic2"})
	n.succeed("DEL", again)

	// Partitions of one function, with their counters in a separate slice.
	n.publishPartitions("third", 3, map[string]string{"half-0": other, "half-1": control})
	halves := n.admitClaiming("halves", claimed("half-0", "control", nil), claimed("half-1", "data", nil))
	n.eventuallyAdds(halves)
	n.wantInterfaces(halves, map[string]string{"net1": "nic0", "net2": "nic2"})
	n.succeed("DEL", halves)
	n.publish("fourth", 4, map[string]string{"dev-0": other, "dev-1": data})

	// Without an agent, one list.
	n.must(agent.Process.Kill())
	n.must(os.Remove(n.path("agent.sock")))
	before := n.sliceRequests()
	once := n.admitClaiming("once", claimed("dev-0", "control", nil), claimed("dev-1", "data", nil))
	n.wantDevices(once, map[string]string{"net1": "nic1", "net2": "nic2"})
	n.succeed("DEL", once)
	if got := strings.TrimPrefix(n.sliceRequests(), before); got != "list 200;" {
		t.Errorf("requests for slices of one pod without an agent: %q", got)
	}
}

// eventuallyOn attaches the pod until its interfaces are on these devices, since
// the agent learns of changes with a delay.
func (n *realNode) eventuallyOn(p *pod, want map[string]string) {
	n.t.Helper()
	n.eventually(fmt.Sprint(want), func() bool {
		n.succeed("ADD", p)
		for ifName, dev := range want {
			if n.interfaceOf(p, ifName).Alias != dev {
				n.succeed("DEL", p)
				return false
			}
		}
		return true
	})
}

// sliceRequests returns the agent's requests for ResourceSlices.
func (n *realNode) sliceRequests() string {
	n.t.Helper()
	var b strings.Builder
	for _, r := range n.asked() {
		if r.Resource == "resourceslices" {
			fmt.Fprintf(&b, "%s %d;", r.Verb, r.Code)
		}
	}
	return b.String()
}
