package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// resourceName is the resource of the demo's devices.
const resourceName = "demo.example/nic"

// node is the demo's node.
type node struct {
	dir     string
	kubelet *fakekubelet.Kubelet
	api     *kubetest.Server
	agent   *exec.Cmd
	rt      harness.Runtime
	pod     *corev1.Pod
	sandbox harness.Sandbox
	netns   *harness.NetNS
	ids     map[string]string // device ID by network device
	before  harness.HostState
}

func (n *node) path(elem string) string { return filepath.Join(n.dir, elem) }

// newNode creates the hardware and starts kubelet, API server and agent.
func newNode(dir string) (*node, error) {
	n := &node{dir: dir, ids: map[string]string{}}
	for _, d := range []string{"net.d", "state", "kubelet"} {
		if err := os.Mkdir(n.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := n.hardware(); err != nil {
		return nil, err
	}
	if err := n.cluster(); err != nil {
		return nil, err
	}
	if err := n.configure(); err != nil {
		return nil, err
	}
	return n, n.startAgent()
}

// hardware creates an uplink for macvlan and two devices.
func (n *node) hardware() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "switch0"}); err != nil {
		return err
	}
	for _, name := range []string{"uplink0", "switch0"} {
		l, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	host, err := harness.NewHost()
	if err != nil {
		return err
	}
	for _, name := range []string{"nic0", "nic1"} {
		if n.ids[name], err = host.AddDevice(name); err != nil {
			return err
		}
	}
	return nil
}

// cluster starts the kubelet with devices and the API server with two definitions.
func (n *node) cluster() (err error) {
	if n.kubelet, err = fakekubelet.Start(n.path("kubelet")); err != nil {
		return err
	}
	n.api = kubetest.Start()
	define := func(name, resource, config string) {
		d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: netattach.DefinitionSpec{Config: config}}
		if resource != "" {
			d.Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
		}
		n.api.AddDefinition(d)
	}
	define("storage", "", fmt.Sprintf(`{"cniVersion":"1.0.0","plugins":[
		{"type":"macvlan","master":"uplink0","mode":"bridge","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.30.0.0/24"}},
		{"type":"tuning","mtu":1400}]}`, n.path("ipam")))
	define("fast", resourceName, `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true}}`)
	return n.kubelet.SetDevices(resourceName, fakekubelet.Device{ID: n.ids["nic0"], NUMA: 0}, fakekubelet.Device{ID: n.ids["nic1"], NUMA: 0})
}

// configure writes the default network and the agent's configuration, and sets the
// plugin's.
func (n *node) configure() error {
	kubeconfig, err := n.api.Kubeconfig(n.dir)
	if err != nil {
		return err
	}
	agent := map[string]any{
		"node": "demo", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "apiServer": kubeconfig, "snapshot": n.path("definitions.snapshot"),
	}
	plugin := map[string]any{
		"cniVersion": "1.1.0", "name": "manifold", "type": "manifold", "clusterNetwork": "cluster-net", "confDir": n.path("net.d"),
		"cniDir": n.path("state"), "binDir": n.path("bin"), "agentSocket": n.path("agent.sock"),
		"agentProgram": n.path("bin/manifold-agent"), "agentConfig": n.path("agent.json"), "deviceInfoDir": n.path("devinfo"),
	}
	rawAgent, err1 := json.Marshal(agent)
	rawPlugin, err2 := json.Marshal(plugin)
	n.rt = harness.Runtime{Plugin: n.path("bin/manifold"), Path: n.path("bin"), Conf: rawPlugin}
	return errors.Join(err1, err2, os.WriteFile(n.path("agent.json"), rawAgent, 0o600),
		os.WriteFile(n.path("net.d/10-default.conflist"), fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"cluster-net","plugins":[{"type":"bridge",
			"bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`,
			n.path("ipam")), 0o600))
}

// startAgent starts the agent and waits for its socket and snapshot.
func (n *node) startAgent() error {
	log, err := os.Create(n.path("agent.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	n.agent = exec.Command(n.path("bin/manifold-agent"), "serve", "--config", n.path("agent.json"))
	n.agent.Stderr = log
	if err := n.agent.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err1 := os.Stat(n.path("agent.sock"))
		_, err2 := os.Stat(n.path("definitions.snapshot"))
		if err1 == nil && err2 == nil {
			return nil
		}
	}
	return errors.New("the agent did not come up; see " + n.path("agent.log"))
}

func (n *node) stopAgent() error {
	if n.agent == nil {
		return nil
	}
	err := n.agent.Process.Signal(syscall.SIGTERM)
	err = errors.Join(err, n.agent.Wait())
	n.agent = nil
	return err
}

func (n *node) stop() {
	_ = n.stopAgent() // an agent that does not stop ends with the namespaces anyway
	n.kubelet.Stop()
	n.api.Stop()
}
