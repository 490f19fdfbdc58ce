package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// nodeName is the node's name, uplink its network device for macvlan.
const (
	nodeName = "bench"
	uplink   = "up0"
)

// metricsAddress is where the agent serves its metrics: on the loopback of the
// benchmark's own network namespace.
const metricsAddress = "127.0.0.1:9610"

// node is the machine that all contenders run on.
type node struct {
	options
	dir     string
	kubelet *fakekubelet.Kubelet
	cluster cluster
	agent   *exec.Cmd
	sets    []delegates
	held    delegates        // of pods with a device
	netns   []*harness.NetNS // one for each pod attached at the same time
	// podsOf are the pods that the node always has, by set of delegates; the last is
	// spare.
	podsOf map[string][]*corev1.Pod
	// made is the number of pods created so far. attached counts the pods of a single
	// round that Manifold has attached, each of them once.
	made, attached int
	background     float64 // share of a processor that the API server uses when idle
}

func (n *node) path(elem string) string { return filepath.Join(n.dir, elem) }

// delegates is a set of networks: the default one and definitions.
type delegates struct {
	name    string
	configs []string // of the cluster default network, then of <name>-1, <name>-2, ...
	lists   []*libcni.NetworkConfigList
}

// noopName is the name of the set of no-op delegates.
const noopName = "no-op"

// noopSet returns a set of networks whose delegate does nothing.
func noopSet(name string, networks int) delegates {
	d := delegates{name: name}
	for i := range networks {
		d.configs = append(d.configs, fmt.Sprintf(`{"cniVersion":"1.0.0","name":"%s-%d","plugins":[{"type":"noop"}]}`, name, i))
	}
	return d
}

// realSet returns what pods really use: two bridges and a macvlan, each with
// host-local addresses.
func realSet(dir string) delegates {
	ipam := func(i int) string {
		return fmt.Sprintf(`{"type":"host-local","ranges":[[{"subnet":"10.%d.0.0/16"}]],"dataDir":%q}`, 80+i, filepath.Join(dir, "ipam"))
	}
	return delegates{name: "real", configs: []string{
		fmt.Sprintf(`{"cniVersion":"1.0.0","name":"real-0","plugins":[{"type":"bridge","bridge":"br0","isGateway":true,"ipam":%s}]}`, ipam(0)),
		fmt.Sprintf(`{"cniVersion":"1.0.0","name":"real-1","plugins":[{"type":"bridge","bridge":"br1","ipam":%s}]}`, ipam(1)),
		fmt.Sprintf(`{"cniVersion":"1.0.0","name":"real-2","plugins":[{"type":"macvlan","master":%q,"ipam":%s}]}`, uplink, ipam(2)),
	}}
}

// heldResource is the resource of the pods with a device.
const heldResource = "bench.example/device"

// advertise gives the node a device for each pod that holds one.
func (n *node) advertise() error {
	devices := make([]fakekubelet.Device, n.options.held)
	for i := range devices {
		devices[i] = fakekubelet.Device{ID: fmt.Sprintf("device-%d", i), NUMA: checkpoint.NoNUMA}
	}
	return n.kubelet.SetDevices(heldResource, devices...)
}

// newNode sets up a node that attaches at most atOnce pods at a time.
func newNode(o options, dir string, atOnce int) (*node, error) {
	n := &node{options: o, dir: dir, podsOf: map[string][]*corev1.Pod{}}
	for _, d := range []string{"net.d", "state", "floor", "kubelet", "api"} {
		if err := os.Mkdir(n.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if n.kubelet, err = fakekubelet.Start(n.path("kubelet")); err != nil {
		return nil, err
	}
	if n.cluster, err = startCluster(o.fake, n.path("api")); err != nil {
		return nil, err
	}
	n.sets = []delegates{noopSet(noopName, 3)}
	if o.real {
		n.sets = append(n.sets, realSet(dir))
	}
	n.held = noopSet("held", 2)
	if err := errors.Join(n.links(atOnce), n.define(), n.advertise(), n.createPods()); err != nil {
		return nil, err
	}
	return n, n.start()
}

// links creates the sandboxes' network namespaces and the uplink.
func (n *node) links(atOnce int) error {
	for i := range max(atOnce, restartAtOnce) {
		one, err := harness.NewNetNS(fmt.Sprintf("bench%d", i))
		if err != nil {
			return err
		}
		n.netns = append(n.netns, one)
	}
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink}, PeerName: "up1"}
	if err := netlink.LinkAdd(up); err != nil {
		return err
	}
	return netlink.LinkSetUp(up)
}

// define writes the default networks' files and the definitions.
func (n *node) define() error {
	plugins := n.path("bin")
	if n.real {
		dir, err := harness.PluginDir()
		if err != nil {
			return err
		}
		plugins += string(os.PathListSeparator) + dir
	}
	for i := range n.sets {
		if err := n.sets[i].define(n, ""); err != nil {
			return err
		}
	}
	if err := n.held.define(n, heldResource); err != nil {
		return err
	}
	for i := range n.definitions {
		if err := n.definition(fmt.Sprintf("unused-%d", i), "", n.held.configs[1]); err != nil {
			return err
		}
	}
	return os.Setenv("CNI_PATH", plugins)
}

// define writes a set's default network to a file and creates definitions for the
// others. The definitions are of resourceName unless it is empty.
func (d *delegates) define(n *node, resourceName string) error {
	for k, config := range d.configs {
		list, err := libcni.NetworkConfFromBytes([]byte(config))
		if err != nil {
			return err
		}
		d.lists = append(d.lists, list)
		if k == 0 {
			err = os.WriteFile(n.path("net.d/"+d.name+".conflist"), []byte(config), 0o600)
		} else {
			err = n.definition(fmt.Sprintf("%s-%d", d.name, k), resourceName, config)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// definition creates a definition.
func (n *node) definition(name, resourceName, config string) error {
	d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: netattach.DefinitionSpec{Config: config}}
	if resourceName != "" {
		d.Annotations = map[string]string{netattach.ResourceNameAnnotation: resourceName}
	}
	return n.cluster.define(d)
}

// createPods creates the pods that the node always has.
func (n *node) createPods() error {
	one := corev1.ResourceList{heldResource: resource.MustParse("1")}
	for range n.options.restart + 1 {
		pod, err := n.pod(n.sets[0], nil)
		if err != nil {
			return err
		}
		n.podsOf[noopName] = append(n.podsOf[noopName], pod)
	}
	for range n.options.held {
		pod, err := n.pod(n.held, one)
		if err != nil {
			return err
		}
		n.podsOf[n.held.name] = append(n.podsOf[n.held.name], pod)
	}
	return nil
}

// pod creates a pod on all definitions of a set, at the API server and the kubelet.
func (n *node) pod(d delegates, limits corev1.ResourceList) (*corev1.Pod, error) {
	var selected []string
	for k := 1; k < len(d.configs); k++ {
		selected = append(selected, fmt.Sprintf("%s-%d", d.name, k))
	}
	n.made++
	pod, err := n.cluster.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("%s-pod-%d", d.name, n.made),
			Annotations: map[string]string{netattach.NetworksAnnotation: strings.Join(selected, ",")},
		},
		Spec: corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{
			{Name: "main", Image: "none", Resources: corev1.ResourceRequirements{Limits: limits}},
		}},
	})
	if err != nil {
		return nil, err
	}
	return n.kubelet.AddPod(pod, nil)
}

// sandbox returns a sandbox of the pod that uses one of the network namespaces.
func (n *node) sandbox(pod *corev1.Pod, netns int) harness.Sandbox {
	return harness.Sandbox{
		ID: pod.Name, NetNS: n.netns[netns%len(n.netns)].Path, Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
	}
}

// start configures and starts the agent and waits for its snapshot of the
// definitions.
func (n *node) start() error {
	config, err := json.Marshal(map[string]any{
		"node": nodeName, "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "apiServer": n.cluster.kubeconfig(), "snapshot": n.path("snapshot"),
		"cniDir": n.path("state"), "listen": metricsAddress, "cniConfig": "-",
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.path("agent.json"), config, 0o600); err != nil {
		return err
	}
	if err := n.launch(); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(n.path("snapshot")); err == nil {
			return nil
		}
	}
	return errors.New("the agent did not come up")
}

// launch starts the agent without waiting for it.
func (n *node) launch() error {
	n.agent = exec.Command(n.path("bin/manifold-agent"), "serve", "--config", n.path("agent.json"))
	n.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return n.agent.Start()
}

// stopAgent stops the agent if it runs.
func (n *node) stopAgent() error {
	if n.agent == nil {
		return nil
	}
	err := n.agent.Process.Signal(syscall.SIGTERM)
	err = errors.Join(err, n.agent.Wait())
	n.agent = nil
	return err
}

func (n *node) stop() error {
	err := n.stopAgent()
	n.kubelet.Stop()
	return errors.Join(err, n.cluster.stop())
}
