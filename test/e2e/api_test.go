package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

// newAPINode returns a node that gets definitions and pods from an API server, and
// whose agent publishes there.
func newAPINode(t *testing.T) (*kubeletNode, *kubetest.Server) {
	t.Helper()
	n := newKubeletNode(t)
	api := kubetest.Start()
	t.Cleanup(api.Stop)
	kubeconfig, err := api.Kubeconfig(n.dir)
	n.must(err)
	n.agentConfig(map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "snapshot": n.path("state/snapshot"), "apiServer": kubeconfig,
	})
	return n, api
}

// definition adds a definition to the API server.
func definition(api *kubetest.Server, name, resource, config string) {
	d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: netattach.DefinitionSpec{Config: config}}
	if resource != "" {
		d.Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
	}
	api.AddDefinition(d)
}

// apiPod adds a pod that both the API server and the kubelet know.
func (n *kubeletNode) apiPod(api *kubetest.Server, name, networks string, containers ...corev1.Container) *pod {
	n.t.Helper()
	p := n.admit(name, networks, nil, containers...)
	api.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(p.UID), Annotations: map[string]string{netattach.NetworksAnnotation: networks}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: containers},
		Status:     corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "claim"}}},
	})
	return p
}

func TestStatusIsPublishedInOnePatch(t *testing.T) {
	for name, c := range map[string]struct {
		agent bool
		when  string // value of the key "status"
	}{"agent": {true, "sync"}, "later": {true, "async"}, "one-shot": {false, "sync"}, "one-shot, later": {false, "async"}} {
		t.Run(name, func(t *testing.T) {
			agent := c.agent
			n, api := newAPINode(t)
			n.withConf(map[string]any{"status": c.when})
			definition(api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
			definition(api, "nic-a", nicA, hostDevice)
			if agent {
				n.serve()
				n.eventually("the agent's definitions", func() bool { return exists(n.path("state/snapshot")) })
			}
			ids := n.devices("nic0")
			p := n.apiPod(api, "app", "plain,nic-a", container("c1", 1))
			api.ForgetRequests()
			n.succeed("ADD", p)
			if c.when == "async" {
				n.eventually("network-status", func() bool { return api.Pod("default", "app").Annotations[netattach.StatusAnnotation] != "" })
			}
			n.checkStatus(api, ids[0])
			n.eventually("the event", func() bool { return len(api.Events()) > 0 })
			n.checkRequests(api, agent)
			if ev := api.Events()[0]; ev.Reason != "AddedInterface" || !strings.Contains(ev.Message, "net2 from default/nic-a") {
				t.Errorf("event %s: %s", ev.Reason, ev.Message)
			}
			n.succeed("DEL", p)
		})
	}
}

// checkStatus compares the pod's network-status.
func (n *kubeletNode) checkStatus(api *kubetest.Server, device string) {
	n.t.Helper()
	stored := api.Pod("default", "app")
	if len(stored.Status.ResourceClaimStatuses) != 1 {
		n.t.Error("the rest of the pod's status was changed")
	}
	var list []netattach.Status
	n.must(json.Unmarshal([]byte(stored.Annotations[netattach.StatusAnnotation]), &list))
	if len(list) != 3 {
		n.t.Fatalf("network-status has %d entries: %+v", len(list), list)
	}
	if s := list[0]; s.Name != "cluster-net" || s.Interface != "eth0" || !s.Default || len(s.IPs) != 1 || s.MAC == "" {
		n.t.Errorf("default entry %+v", s)
	}
	if s := list[2]; s.Name != "default/nic-a" || s.Interface != "net2" || s.Default || s.MAC == "" {
		n.t.Errorf("device entry %+v (device %s)", s, device)
	}
}

// checkRequests checks which requests to the API server the start of a pod costs.
func (n *kubeletNode) checkRequests(api *kubetest.Server, agent bool) {
	n.t.Helper()
	var methods []string
	for _, r := range api.Requests() {
		methods = append(methods, r.Method+" "+r.Path)
	}
	patches := slices.DeleteFunc(slices.Clone(methods), func(m string) bool { return !strings.HasPrefix(m, "PATCH") })
	if len(patches) != 1 || !strings.HasSuffix(patches[0], "/pods/app") {
		n.t.Errorf("patches: %v", patches)
	}
	// The agent's watch of all definitions may begin a moment after it serves; it is
	// no cost of the pod.
	methods = slices.DeleteFunc(methods, func(m string) bool {
		return strings.HasPrefix(m, "GET ") && strings.HasSuffix(m, "/network-attachment-definitions")
	})
	if agent && len(methods) != 2 {
		n.t.Errorf("with an agent a pod costs one PATCH and one event, got %v", methods)
	}
}

func TestDefinitionsOutliveTheAPIServer(t *testing.T) {
	n, api := newAPINode(t)
	definition(api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
	cmd := n.serve()
	n.eventually("the snapshot", func() bool { return exists(n.path("state/snapshot")) })
	api.Stop()
	p := n.admit("app", "plain", nil)
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.must(cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	again := n.admit("again", "plain", nil)
	n.succeed("ADD", again) // one-shot, from the kubelet and the snapshot alone
	n.succeed("DEL", again)
}
