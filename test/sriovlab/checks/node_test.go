//go:build sriovlab

package checks

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// node is the guest as a cluster's node: a kubelet that advertises the VFs of each PF
// as a resource, an API server, the agent, and the runtime that calls the plugin. The
// default network is a bridge.
type node struct {
	t       *testing.T
	dir     string
	rt      harness.Runtime
	kubelet *fakekubelet.Kubelet
	api     *kubetest.Server
	agent   *exec.Cmd
	count   *int          // number of sandboxes created
	before  hardwareState // state that the test must leave; nil to compare nothing
}

// newNode starts a node with a running agent. It ends with the test, which must leave
// the hardware and the host as they were before.
func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "node-") // short, because it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	return startNode(t, dir, fakekubelet.Normal)
}

// startNode is [newNode] with a given directory, which may come from an earlier boot,
// and a given phase of its kubelet.
func startNode(t *testing.T, dir string, phase fakekubelet.Phase) *node {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, api: kubetest.Start(), count: new(int), before: hardware(t)}
	t.Cleanup(func() {
		n.leave(t)
		_ = os.RemoveAll(dir)
	})
	t.Cleanup(n.api.Stop)
	var err error
	n.kubelet, err = fakekubelet.Start(n.path("kubelet"))
	n.must(err)
	t.Cleanup(n.kubelet.Stop)
	n.must(n.kubelet.SetPhase(phase))
	for numa, p := range pfs {
		var devices []fakekubelet.Device
		for _, vf := range p.vfs {
			devices = append(devices, fakekubelet.Device{ID: vf, NUMA: int64(numa)})
		}
		n.must(n.kubelet.SetDevices(p.resource, devices...))
	}
	n.configure()
	n.serve()
	return n
}

// leave compares the hardware with its state before the test. After a failure it
// recreates the hardware instead, so that the next test does not fail for the same
// reason.
func (n *node) leave(t *testing.T) {
	t.Helper()
	if !t.Failed() && n.before != nil {
		n.before.same(t)
	}
	if !t.Failed() {
		return
	}
	for _, p := range pfs {
		if err := p.repair(); err != nil {
			t.Error(err)
		}
	}
}

// configure writes the default network's, the agent's and the plugin's configuration.
func (n *node) configure() {
	n.t.Helper()
	for _, d := range []string{"net.d", "state", "devinfo/dp"} {
		n.must(os.MkdirAll(n.path(d), 0o755))
	}
	kubeconfig, err := n.api.Kubeconfig(n.dir)
	n.must(err)
	n.json("net.d/10-default.conflist", map[string]any{"cniVersion": "1.0.0", "name": "cluster-net", "plugins": []any{
		map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": n.ipam("10.88.0.0/16")},
	}})
	n.json("agent.json", map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "snapshot": n.path("snapshot"), "apiServer": kubeconfig,
		"cniDir": n.path("state"), "listen": listenAddress,
	})
	n.json("manifold.json", map[string]any{
		"cniVersion": "1.1.0", "name": "manifold", "type": "manifold", "clusterNetwork": "cluster-net", "confDir": n.path("net.d"),
		"cniDir": n.path("state"), "binDir": "/opt/cni/bin", "agentSocket": n.path("agent.sock"), "agentProgram": "/opt/manifold/manifold-agent",
		"agentConfig": n.path("agent.json"), "deviceInfoDir": n.path("devinfo"), "carrier": "ignore", // a carrier takes seconds
	})
	raw, err := os.ReadFile(n.path("manifold.json"))
	n.must(err)
	n.rt = harness.Runtime{Plugin: "/opt/manifold/manifold", Path: "/opt/cni/bin:/opt/manifold", Conf: raw}
}

// listenAddress is where the agent serves its metrics, on the guest's loopback.
const listenAddress = "127.0.0.1:9610"

// ipam returns the configuration of an address range with its leases in the node's
// directory.
func (n *node) ipam(subnet string) map[string]any {
	return map[string]any{"type": "host-local", "dataDir": n.path("ipam"), "subnet": subnet}
}

// serve starts the agent and waits until it serves and has taken a snapshot of the
// definitions.
func (n *node) serve() {
	n.t.Helper()
	log, err := os.Create(n.path("agent.log"))
	n.must(err)
	defer log.Close()
	cmd := exec.Command("/opt/manifold/manifold-agent", "serve", "--config", n.path("agent.json"))
	cmd.Stderr = log
	n.must(cmd.Start())
	n.agent = cmd
	n.t.Cleanup(func() {
		_ = n.stop(cmd) // a test may have stopped it
		if text, err := os.ReadFile(n.path("agent.log")); err == nil && n.t.Failed() {
			n.t.Logf("the agent's log:\n%s", text)
		}
	})
	n.eventually("the agent to serve", func() bool {
		_, err1 := os.Stat(n.path("agent.sock"))
		_, err2 := os.Stat(n.path("snapshot"))
		return err1 == nil && err2 == nil
	})
}

// stop ends an agent as the kubelet does. One that does not end writes to its log where
// it hangs.
func (n *node) stop(agent *exec.Cmd) error {
	hangs := time.AfterFunc(patience, func() {
		n.t.Errorf("the agent did not stop within %s", patience)
		_ = agent.Process.Signal(syscall.SIGQUIT)
	})
	defer hangs.Stop()
	return errors.Join(agent.Process.Signal(syscall.SIGTERM), agent.Wait())
}

func (n *node) path(name string) string { return n.dir + "/" + name }

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) json(name string, v any) {
	n.t.Helper()
	raw, err := json.Marshal(v)
	n.must(err)
	n.must(os.WriteFile(n.path(name), raw, 0o600))
}

// patience is how long another process or the kernel may take under emulation on a busy
// machine.
const patience = 3 * time.Minute

// eventually waits until another process or the kernel has made a condition true.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatalf("gave up waiting for %s", what)
}

// state returns what pods have on the node while they live: links, addresses, routes,
// journals, claims, libcni's records, device information, network namespaces.
func (n *node) state() harness.HostState {
	n.t.Helper()
	all, err := harness.Capture(n.path("state"), n.path("ipam"), n.path("devinfo"), "/run/netns")
	n.must(err)
	return slices.DeleteFunc(all, func(line string) bool {
		// A VF that was given back leaves its claim as an empty file.
		return strings.Contains(line, "/state/devices/") && strings.Contains(line, " 0 bytes ")
	})
}

// unchanged waits until the node is as it was before: the kernel destroys a network
// namespace, and what is in it, some time after its last user.
func (n *node) unchanged(before harness.HostState) {
	n.t.Helper()
	var diff string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if diff = before.Diff(n.state()); diff == "" {
			return
		}
	}
	n.t.Errorf("left behind:\n%s", diff)
}

// define adds a network definition for devices of a resource, with a chain of plugins.
func (n *node) define(name, resource string, plugins ...map[string]any) {
	n.t.Helper()
	config, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "plugins": plugins})
	n.must(err)
	n.api.AddDefinition(&netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{netattach.ResourceNameAnnotation: resource}},
		Spec:       netattach.DefinitionSpec{Config: string(config)},
	})
}

// hostDevice returns the plugin that moves a device into the pod, with additional keys.
func hostDevice(more map[string]any) map[string]any {
	conf := map[string]any{"type": "host-device", "capabilities": map[string]any{"deviceID": true}}
	for k, v := range more {
		conf[k] = v
	}
	return conf
}

// pod is a pod of the node with its sandbox.
type pod struct {
	harness.Sandbox
	ns     *harness.NetNS
	object *corev1.Pod
}

// container returns a container that requests one device per resource given; a resource
// given twice means two devices.
func container(name string, resources ...string) corev1.Container {
	limits := corev1.ResourceList{}
	for _, r := range resources {
		q := limits[corev1.ResourceName(r)]
		q.Add(*resource.NewQuantity(1, resource.DecimalSI))
		limits[corev1.ResourceName(r)] = q
	}
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: limits}}
}

// admit creates a pod at the API server and the kubelet, which gives it devices: the
// pinned ones, or else the first free ones.
func (n *node) admit(name, networks string, pins fakekubelet.Pins, containers ...corev1.Container) *pod {
	n.t.Helper()
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "default", UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", *n.count+1)),
			Annotations: map[string]string{netattach.NetworksAnnotation: networks},
		},
		Spec: corev1.PodSpec{NodeName: "node1", Containers: containers},
	}
	return n.admitPod(object, pins)
}

// admitPod is [admit] with the pod's object.
func (n *node) admitPod(object *corev1.Pod, pins fakekubelet.Pins) *pod {
	n.t.Helper()
	*n.count++
	n.api.AddPod(object.DeepCopy())
	_, err := n.kubelet.AddPod(object, pins)
	n.must(err)
	netns, err := harness.NewNetNS(fmt.Sprintf("%s-%d", object.Name, *n.count))
	n.must(err)
	n.t.Cleanup(func() { _ = netns.Delete() }) // a test may have deleted it
	return &pod{ns: netns, object: object, Sandbox: harness.Sandbox{
		ID: fmt.Sprintf("sandbox%d", *n.count), NetNS: netns.Path, Namespace: object.Namespace, Name: object.Name, UID: string(object.UID),
	}}
}

// release deletes a pod from the kubelet after its DEL.
func (n *node) release(p *pod) {
	n.t.Helper()
	n.must(n.kubelet.DeletePod(types.UID(p.UID)))
	_ = p.ns.Delete() // it may be gone already
}

// call runs a verb and returns its result.
func (n *node) call(verb string, p *pod) *harness.Result {
	n.t.Helper()
	res, err := n.rt.Call(verb, p.Sandbox)
	n.must(err)
	return res
}

// succeed runs a verb, which must succeed.
func (n *node) succeed(verb string, p *pod) {
	n.t.Helper()
	if res := n.call(verb, p); res.Status != 0 {
		n.t.Fatalf("%s %s: %s\nstderr: %s", verb, p.Name, res.Stdout, res.Stderr)
	}
}

// refuse runs an ADD, which must fail with a message that contains all parts, and leave
// nothing.
func (n *node) refuse(p *pod, code uint, parts ...string) {
	n.t.Helper()
	before := hardware(n.t)
	n.says(n.call("ADD", p), code, parts...)
	before.same(n.t)
}

// says fails unless a call failed with this code and a message that contains all parts.
func (n *node) says(res *harness.Result, code uint, parts ...string) {
	n.t.Helper()
	if res.Status == 0 || res.Error == nil {
		n.t.Fatalf("the call succeeded or printed no error object: %s\nstderr: %s", res.Stdout, res.Stderr)
	}
	if res.Error.Code != code {
		n.t.Errorf("code %d, want %d: %s", res.Error.Code, code, res.Error.Msg)
	}
	for _, part := range parts {
		if !strings.Contains(res.Error.Msg, part) {
			n.t.Errorf("the message lacks %q: %s", part, res.Error.Msg)
		}
	}
}

// status returns the pod's published network-status without the entry of the default
// network.
func (n *node) status(p *pod) []netattach.Status {
	n.t.Helper()
	var list []netattach.Status
	n.must(json.Unmarshal([]byte(n.api.Pod("default", p.Name).Annotations[netattach.StatusAnnotation]), &list))
	if len(list) == 0 || !list[0].Default {
		n.must(errors.New("network-status does not begin with the default network"))
	}
	return list[1:]
}
