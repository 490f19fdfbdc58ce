package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// node is the machine that both contenders run on.
type node struct {
	dir     string
	kubelet *fakekubelet.Kubelet
	api     *kubetest.Server
	agent   *exec.Cmd
	rt      harness.Runtime
	netns   *harness.NetNS
	pods    []*corev1.Pod
	cni     *libcni.CNIConfig
	lists   []*libcni.NetworkConfigList
}

func (n *node) path(elem string) string { return filepath.Join(n.dir, elem) }

// networks are the three networks of a pod: the default and two definitions.
var networks = []string{"cluster-net", "one", "two"}

func config(name string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"noop"}]}`, name)
}

func newNode(dir string) (*node, error) {
	n := &node{dir: dir, api: kubetest.Start()}
	for _, d := range []string{"net.d", "state", "floor", "kubelet"} {
		if err := os.Mkdir(n.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if n.kubelet, err = fakekubelet.Start(n.path("kubelet")); err != nil {
		return nil, err
	}
	if n.netns, err = harness.NewNetNS("bench"); err != nil {
		return nil, err
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.path("bin")}, n.path("floor"), nil)
	for _, name := range networks {
		list, err := libcni.NetworkConfFromBytes([]byte(config(name)))
		if err != nil {
			return nil, err
		}
		n.lists = append(n.lists, list)
	}
	for _, name := range networks[1:] {
		n.api.AddDefinition(&netattach.Definition{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: netattach.DefinitionSpec{Config: config(name)}})
	}
	if err := n.admit(); err != nil {
		return nil, err
	}
	return n, n.start()
}

// admit makes the pods known to kubelet and API server.
func (n *node) admit() error {
	for i := range *pods + 10 {
		pod, err := n.kubelet.AddPod(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("pod-%d", i), Annotations: map[string]string{netattach.NetworksAnnotation: "one,two"}},
			Spec:       corev1.PodSpec{NodeName: "bench", Containers: []corev1.Container{{Name: "main"}}},
		}, nil)
		if err != nil {
			return err
		}
		n.api.AddPod(pod)
		n.pods = append(n.pods, pod)
	}
	return nil
}

// start writes the configurations and starts the agent.
func (n *node) start() error {
	kubeconfig, err := n.api.Kubeconfig(n.dir)
	if err != nil {
		return err
	}
	agent, err1 := json.Marshal(map[string]any{
		"node": "bench", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "apiServer": kubeconfig, "snapshot": n.path("snapshot"),
	})
	plugin, err2 := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "manifold", "type": "manifold", "clusterNetwork": networks[0], "confDir": n.path("net.d"), "cniDir": n.path("state"),
		"binDir": n.path("bin"), "agentSocket": n.path("agent.sock"), "agentProgram": n.path("bin/manifold-agent"), "agentConfig": n.path("agent.json"),
	})
	n.rt = harness.Runtime{Plugin: n.path("bin/manifold"), Path: n.path("bin"), Conf: plugin}
	if err := errors.Join(err1, err2, os.WriteFile(n.path("agent.json"), agent, 0o600),
		os.WriteFile(n.path("net.d/10-default.conflist"), []byte(config(networks[0])), 0o600)); err != nil {
		return err
	}
	n.agent = exec.Command(n.path("bin/manifold-agent"), "serve", "--config", n.path("agent.json"))
	if err := n.agent.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(n.path("snapshot")); err == nil {
			return nil
		}
	}
	return errors.New("the agent did not come up")
}

func (n *node) stop() {
	_ = n.agent.Process.Signal(syscall.SIGTERM) // all ends with the namespaces anyway
	_ = n.agent.Wait()
	n.kubelet.Stop()
	n.api.Stop()
}

func (n *node) floorRuntime(i, network int) *libcni.RuntimeConf {
	ifName := "eth0"
	if network > 0 {
		ifName = fmt.Sprintf("net%d", network)
	}
	return &libcni.RuntimeConf{ContainerID: fmt.Sprintf("floor%d", i), NetNS: n.netns.Path, IfName: ifName}
}

// floorAdd is the floor's ADD: libcni alone, in this process.
func (n *node) floorAdd(i int) error {
	for k, list := range n.lists {
		if _, err := n.cni.AddNetworkList(context.Background(), list, n.floorRuntime(i, k)); err != nil {
			return err
		}
	}
	return nil
}

// floorDel is the floor's DEL.
func (n *node) floorDel(i int) error {
	for k := len(n.lists) - 1; k >= 0; k-- {
		if err := n.cni.DelNetworkList(context.Background(), n.lists[k], n.floorRuntime(i, k)); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) manifoldAdd(i int) error { return n.call("ADD", i) }
func (n *node) manifoldDel(i int) error { return n.call("DEL", i) }

// call runs the plugin as a runtime does.
func (n *node) call(verb string, i int) error {
	pod := n.pods[i]
	res, err := n.rt.Call(verb, harness.Sandbox{ID: fmt.Sprintf("pod%d", i), NetNS: n.netns.Path, Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)})
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("%s %s", res.Stdout, res.Stderr)
	}
	return err
}

// starts prints how long the plugin takes to start, to do nothing and to end,
// beside the no-op delegate.
func (n *node) starts() error {
	fmt.Println("start to end, doing nothing (VERSION)")
	for _, name := range []string{"noop", "manifold"} {
		rt := harness.Runtime{Plugin: n.path("bin/" + name), Path: n.path("bin")}
		var times []time.Duration
		for range *pods {
			one, err := together(1, 0, func(int) error {
				_, err := rt.Call("VERSION", harness.Sandbox{})
				return err
			})
			if err != nil {
				return err
			}
			times = append(times, one...)
		}
		fmt.Printf("  %-12s %s %s %s\n", name, at(times, 50), at(times, 90), at(times, 99))
	}
	return nil
}

// footprint prints sizes and resident memory.
func (n *node) footprint() error {
	fi, err := os.Stat(n.path("bin/manifold"))
	if err != nil {
		return err
	}
	cmd := n.rt.Command("ADD", harness.Sandbox{ID: "footprint", NetNS: n.netns.Path, Namespace: "default", Name: n.pods[*pods].Name, UID: string(n.pods[*pods].UID)})
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	plugin := peak(cmd.Process.Pid, n.rt.Plugin, ended)
	agent := memory(n.agent.Process.Pid, "VmRSS:")
	fmt.Printf("\nplugin: %.1f MB stripped, %.1f MiB resident at most; agent: %.1f MiB resident\n", float64(fi.Size())/1e6, float64(plugin)/1024, float64(agent)/1024)
	return nil
}

// peak follows a process until it ends and returns the largest resident memory
// of its own program, in KiB. The kernel's accounting of an ended process would
// count its parent's memory from before the exec.
func peak(pid int, program string, ended <-chan error) int64 {
	var most int64
	for {
		select {
		case <-ended:
			return most
		default:
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == filepath.Base(program) {
			most = max(most, memory(pid, "VmHWM:"))
		}
	}
}

// memory reads a figure of /proc/PID/status, in KiB; 0 when the process is gone.
func memory(pid int, key string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(status), "\n") {
		if v, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64) // absent figures are 0
			return n
		}
	}
	return 0
}
