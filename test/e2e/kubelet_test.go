package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// kubeletNode is a node whose pods and allocations come from a running kubelet.
type kubeletNode struct {
	*node
	kubelet *fakekubelet.Kubelet
}

// newKubeletNode starts a node with a fake kubelet. without lists the sources to
// disable, by their key in the agent's configuration.
func newKubeletNode(t *testing.T, without ...string) *kubeletNode {
	t.Helper()
	n := &kubeletNode{node: newNode(t, nil)}
	var err error
	n.kubelet, err = fakekubelet.Start(n.path("kubelet"))
	n.must(err)
	t.Cleanup(n.kubelet.Stop)
	conf := map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "snapshot": "-",
		"podManifests": n.path("pods"), "definitionManifests": n.path("definitions"),
	}
	for _, key := range without {
		conf[key] = "-"
	}
	n.agentConfig(conf)
	n.define("nic-a", nicA, hostDevice)
	return n
}

// container returns a container that asks for a number of devices of nicA.
func container(name string, devices int) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
		nicA: *resource.NewQuantity(int64(devices), resource.DecimalSI),
	}}}
}

// admit admits a pod and creates its sandbox.
func (n *kubeletNode) admit(name, networks string, pins map[string]map[string][]string, containers ...corev1.Container) *pod {
	n.t.Helper()
	p, err := n.kubelet.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": networks}},
		Spec:       corev1.PodSpec{Containers: containers},
	}, pins)
	n.must(err)
	return n.sandbox(name, string(p.UID))
}

// devices creates network devices and advertises them.
func (n *kubeletNode) devices(names ...string) []string {
	n.t.Helper()
	var ids []string
	var devices []fakekubelet.Device
	for _, name := range names {
		id := n.device(name)
		ids = append(ids, id)
		devices = append(devices, fakekubelet.Device{ID: id, NUMA: 0})
	}
	n.must(n.kubelet.SetDevices(nicA, devices...))
	return ids
}

func TestEachAllocationSourceAloneSuffices(t *testing.T) {
	for _, without := range []string{"nothing", "checkpoint", "podResources"} {
		t.Run("without "+without, func(t *testing.T) {
			n := newKubeletNode(t, map[string][]string{"nothing": nil}[without]...)
			if without != "nothing" {
				n = newKubeletNode(t, without)
			}
			n.serve()
			ids := n.devices("nic0", "nic1")
			n.warm()
			// The first container has the device with the higher ID.
			pins := map[string]map[string][]string{"c1": {nicA: {ids[1]}}, "c2": {nicA: {ids[0]}}}
			p := n.admit("app", "nic-a,nic-a", pins, container("c1", 1), container("c2", 1))
			before := n.state()
			n.succeed("ADD", p)
			for ifName, dev := range map[string]string{"net1": "nic1", "net2": "nic0"} {
				if got := n.interfaceOf(p, ifName).Alias; got != dev {
					t.Errorf("%s is %s, want %s", ifName, got, dev)
				}
			}
			n.succeed("DEL", p)
			n.unchanged(before)
		})
	}
}

func TestKubeletRestartWindow(t *testing.T) {
	for name, phase := range map[string]fakekubelet.Phase{"down": fakekubelet.Down, "empty": fakekubelet.Empty, "get only": fakekubelet.GetOnly} {
		t.Run(name, func(t *testing.T) {
			n := newKubeletNode(t)
			n.serve()
			n.devices("nic0")
			n.warm()
			p := n.admit("app", "nic-a", nil, container("c1", 1))
			n.addPodManifest(p)
			before := n.state()
			n.must(n.kubelet.SetPhase(phase))
			n.succeed("ADD", p)
			n.must(n.kubelet.SetPhase(fakekubelet.Normal))
			n.succeed("DEL", p)
			n.unchanged(before)
		})
	}
}

// TestStaticPodsWhileNobodyAnswers proves that the manifests alone are enough while
// a kubelet without an API server has just started and does not list its pods.
func TestStaticPodsWhileNobodyAnswers(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("podManifests %t", known), func(t *testing.T) {
			n := newKubeletNode(t)
			if !known {
				n = newKubeletNode(t, "podManifests")
			}
			n.define("plain", "", n.bridge("plain", "10.89.0.0/16"))
			n.must(n.kubelet.SetPhase(fakekubelet.Empty))
			n.serve()
			p := n.node.addPod("static", "plain")
			if !known {
				n.refuse("ADD", p, 11, "pod default/static", "Kubelet is initializing", "podManifests")
				return
			}
			n.succeed("ADD", p)
			n.interfaceOf(p, "net1")
			n.succeed("DEL", p)
		})
	}
}

// addPodManifest makes the pod known while the kubelet's Pods API is down. The
// manifest's name lacks the node's name, so only the UID tells that it is this
// pod's.
func (n *kubeletNode) addPodManifest(p *pod) {
	n.t.Helper()
	n.file("pods/"+p.Name+".json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"`+p.Name+`","namespace":"default","uid":"`+p.UID+`",
		"annotations":{"k8s.v1.cni.cncf.io/networks":"nic-a"}},"spec":{"containers":[{"name":"c1","image":"none"}]}}`)
}

func TestHangingKubelet(t *testing.T) {
	n := newKubeletNode(t)
	n.serve()
	n.devices("nic0")
	n.warm()
	p := n.admit("app", "nic-a", nil, container("c1", 1))
	n.kubelet.SetHang(true)
	before := n.state()
	n.succeed("ADD", p) // from the checkpoint
	n.succeed("DEL", p)
	n.unchanged(before)
}

func TestOldPodOfTheSameNameIsNeverTakenFor(t *testing.T) {
	n := newKubeletNode(t, "podsAPI")
	n.serve()
	ids := n.devices("nic0", "nic1")
	n.warm()
	old, err := n.kubelet.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-0", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{container("c1", 1)}},
	}, map[string]map[string][]string{"c1": {nicA: {ids[0]}}})
	n.must(err)
	n.kubelet.Shadow(old)
	// The next pod of that name has no device yet, and must not get the old pod's.
	none := n.sandbox("web-0", "00000000-0000-4000-8000-0000000000aa")
	n.addPodManifest(none)
	n.refusedWithoutTrace(none, 11, "another pod of the same name", ids[0])
	// With its own allocation it must get its own device, though the API still returns
	// the old pod's.
	p := n.admit("web-0", "nic-a", map[string]map[string][]string{"c1": {nicA: {ids[1]}}}, container("c1", 1))
	n.addPodManifest(p)
	n.refusedWithoutTrace(p, 106, ids[0])
}

func TestManyPodsAtOnceStayWithinTheRateLimit(t *testing.T) {
	n := newKubeletNode(t)
	n.serve()
	const pods = 40
	var names []string
	for i := range pods {
		names = append(names, fmt.Sprintf("nic%d", i))
	}
	n.devices(names...)
	n.warm()
	var all []*pod
	for i := range pods {
		all = append(all, n.admit(fmt.Sprintf("app-%d", i), "nic-a", nil, container("c1", 1)))
	}
	before := n.state()
	calls := n.kubelet.Calls()["List"] + n.kubelet.Calls()["Get"]
	n.each(all, "ADD")
	if used := n.kubelet.Calls()["List"] + n.kubelet.Calls()["Get"] - calls; used > pods {
		t.Errorf("%d PodResources calls for %d pods", used, pods)
	}
	seen := map[string]string{}
	for _, p := range all {
		dev := n.interfaceOf(p, "net1").Alias
		if other := seen[dev]; other != "" {
			t.Errorf("device %s serves %s and %s", dev, other, p.Name)
		}
		seen[dev] = p.Name
	}
	n.each(all, "DEL")
	n.unchanged(before)
}

// each runs a verb for all pods at once.
func (n *node) each(pods []*pod, verb string) {
	n.t.Helper()
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			res, err := n.rt.Call(verb, p.Sandbox)
			if err != nil || res.Status != 0 {
				n.t.Errorf("%s %s: %v %s", verb, p.Name, err, strings.TrimSpace(string(res.Stdout)))
			}
		})
	}
	wg.Wait()
}
