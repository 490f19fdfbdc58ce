package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/harness"
)

// Directories of programs, built once for all tests, outside the namespaces.
var (
	programDir = harness.ProgramDir()
	pluginDir  string
)

func TestMain(m *testing.M) {
	var err error
	if pluginDir, err = harness.PluginDir(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builds = append(builds, func() error {
		return errors.Join(os.MkdirAll(programDir, 0o755), harness.Programs(programDir, true))
	})
	harness.Main(m, builds...)
}

// builds are built outside the namespaces, before the tests.
var builds []func() error

// Resources that the nodes of these tests advertise.
const (
	nicA = "test.example/nic-a"
	nicB = "test.example/nic-b"
)

// node is a whole node: the host, the kubelet's files, the agent, and the runtime
// that calls the plugin. Its pods and definitions are manifests, so it needs no API
// server.
type node struct {
	t       *testing.T
	dir     string
	bin     string // CNI_PATH
	host    *harness.Host
	rt      harness.Runtime
	entries []checkpoint.Entry
	count   int
}

// newNode starts a node with a bridge as default network. conf adds or replaces
// keys of the plugin's configuration.
func newNode(t *testing.T, conf map[string]any) *node {
	t.Helper()
	// Not t.TempDir, whose path can be too long for a socket.
	dir, err := os.MkdirTemp("", "manifold-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{t: t, dir: dir}
	n.bin = n.path("bin")
	for _, d := range []string{"bin", "pods", "definitions", "net.d", "state", "kubelet", "devinfo/dp"} {
		n.must(os.MkdirAll(n.path(d), 0o755))
	}
	host, err := harness.NewHost()
	n.must(err)
	n.host = host
	n.link(pluginDir)
	n.link(programDir)
	n.file("net.d/10-default.conflist", `{"cniVersion":"1.0.0","name":"cluster-net","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,
		"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`)
	n.agentConfig(map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "podResources": "-", "podsAPI": "-", "snapshot": "-",
		"podManifests": n.path("pods"), "definitionManifests": n.path("definitions"),
	})
	keys := map[string]any{
		"cniVersion": "1.1.0", "name": "manifold", "type": "manifold", "clusterNetwork": "cluster-net",
		"confDir": n.path("net.d"), "cniDir": n.path("state"), "binDir": n.bin, "agentSocket": n.path("agent.sock"),
		"agentProgram": filepath.Join(n.bin, "manifold-agent"), "agentConfig": n.path("agent.json"), "deviceInfoDir": n.path("devinfo"),
		"lockTimeout": "20s",
	}
	for k, v := range conf {
		keys[k] = v
	}
	raw, err := json.Marshal(keys)
	n.must(err)
	n.rt = harness.Runtime{Plugin: filepath.Join(n.bin, "manifold"), Path: n.bin, Conf: raw}
	return n
}

func (n *node) path(elem string) string { return filepath.Join(n.dir, elem) }

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) file(name, content string) {
	n.t.Helper()
	n.must(os.WriteFile(n.path(name), []byte(content), 0o600))
}

func (n *node) agentConfig(c map[string]any) {
	n.t.Helper()
	raw, err := json.Marshal(c)
	n.must(err)
	n.file("agent.json", string(raw))
}

// link links the programs of dir into the node's plugin directory.
func (n *node) link(dir string) {
	n.t.Helper()
	entries, err := os.ReadDir(dir)
	n.must(err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			n.must(os.Symlink(filepath.Join(dir, e.Name()), filepath.Join(n.bin, e.Name())))
		}
	}
}

// serve starts the agent, waits for its socket, and stops it at the end of the
// test.
func (n *node) serve(env ...string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(filepath.Join(n.bin, "manifold-agent"), "serve", "--config", n.path("agent.json"))
	log, err := os.OpenFile(n.path("agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	cmd.Stderr, cmd.Env = log, append(os.Environ(), env...)
	n.must(cmd.Start())
	n.must(log.Close())
	n.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have been killed
		_ = cmd.Wait()
	})
	n.eventually("the agent's socket", func() bool {
		_, err := os.Stat(n.path("agent.sock"))
		return err == nil
	})
	return cmd
}

// eventually waits for a condition that another process fulfills.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatalf("timed out waiting for %s", what)
}

// define writes a definition; an empty resource means one without a device.
func (n *node) define(name, resource, config string) {
	n.t.Helper()
	n.defineIn("default", name, resource, config)
}

// defineIn writes a definition in a namespace.
func (n *node) defineIn(namespace, name, resource, config string) {
	n.t.Helper()
	annotations := map[string]string{}
	if resource != "" {
		annotations["k8s.v1.cni.cncf.io/resourceName"] = resource
	}
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name, "namespace": namespace, "annotations": annotations},
		"spec":     map[string]any{"config": config},
	})
	n.must(err)
	n.file(definitionFile(namespace, name), string(raw))
}

// definitionFile returns the file of a definition.
func definitionFile(namespace, name string) string {
	if namespace == "default" {
		return "definitions/" + name + ".json"
	}
	return "definitions/" + namespace + "." + name + ".json"
}

// bridge returns the configuration of a secondary bridge network without a gateway.
func (n *node) bridge(name, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","type":"bridge","bridge":"br-%s","ipam":{"type":"host-local","dataDir":%q,"subnet":%q}}`, name, n.path("ipam"), subnet)
}

// hostDevice is the configuration of a network that moves a device.
const hostDevice = `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true}}`

// pod is a pod of a node, with its sandbox.
type pod struct {
	harness.Sandbox
	ns *harness.NetNS
}

// addPod writes a pod that selects networks, with the named containers and one
// more.
func (n *node) addPod(name, networks string, containers ...string) *pod {
	n.t.Helper()
	var list []map[string]any
	for _, c := range append(containers, "last") {
		list = append(list, map[string]any{"name": c, "image": "none"})
	}
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", os.Getpid()*1000+n.count)
	meta := map[string]any{"name": name, "namespace": "default", "uid": uid}
	if networks != "" {
		meta["annotations"] = map[string]string{"k8s.v1.cni.cncf.io/networks": networks}
	}
	raw, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": map[string]any{"containers": list}})
	n.must(err)
	n.file("pods/"+name+".json", string(raw))
	return n.sandbox(name, uid)
}

// sandbox creates a sandbox for a pod.
func (n *node) sandbox(name, uid string) *pod {
	n.t.Helper()
	n.count++
	id := fmt.Sprintf("%x%06x%s", n.count, os.Getpid(), strings.ReplaceAll(name, "-", ""))
	netns, err := harness.NewNetNS(id)
	n.must(err)
	n.t.Cleanup(func() { _ = netns.Delete() }) // a test may have deleted it
	return &pod{Sandbox: harness.Sandbox{ID: id, NetNS: netns.Path, Namespace: "default", Name: name, UID: uid}, ns: netns}
}

// allocate adds devices of a pod's container to the kubelet's checkpoint.
func (n *node) allocate(p *pod, container, resource string, ids ...string) {
	n.t.Helper()
	n.entries = append(n.entries, checkpoint.Entry{
		PodUID: p.UID, Container: container, Resource: resource, Devices: []checkpoint.NUMADevices{{Node: 0, IDs: ids}},
	})
	raw, err := checkpoint.Encode(n.entries, nil)
	n.must(err)
	n.must(os.MkdirAll(n.path("kubelet/device-plugins"), 0o755))
	file := n.path("kubelet/device-plugins/kubelet_internal_checkpoint")
	n.must(errors.Join(os.WriteFile(file+".new", raw, 0o600), os.Rename(file+".new", file)))
}

// device creates a network device and returns its device ID.
func (n *node) device(name string) string {
	n.t.Helper()
	id, err := n.host.AddDevice(name)
	n.must(err)
	n.t.Cleanup(func() { removeLink(name) })
	return id
}

// call runs a verb. In any case stdout must be empty or a single document.
func (n *node) call(verb string, p *pod) *harness.Result {
	n.t.Helper()
	res, err := n.rt.Call(verb, p.Sandbox)
	n.must(err)
	if len(res.Stdout) > 0 || verb == "ADD" || res.Status != 0 {
		if err := harness.OneDocument(res.Stdout); err != nil {
			n.t.Errorf("%s: %v; stderr %s", verb, err, res.Stderr)
		}
	}
	return res
}

// succeed runs a verb that must succeed.
func (n *node) succeed(verb string, p *pod) *harness.Result {
	n.t.Helper()
	res := n.call(verb, p)
	if res.Status != 0 {
		n.t.Fatalf("%s: %s\nstderr: %s", verb, res.Stdout, res.Stderr)
	}
	return res
}

// refuse runs a verb that must fail with this code and a message that contains all
// parts.
func (n *node) refuse(verb string, p *pod, code uint, parts ...string) {
	n.t.Helper()
	res := n.call(verb, p)
	if res.Status == 0 || res.Error == nil {
		n.t.Fatalf("%s succeeded or printed no error object: %s\nstderr: %s", verb, res.Stdout, res.Stderr)
	}
	if res.Error.Code != code {
		n.t.Errorf("%s: code %d, want %d: %s", verb, res.Error.Code, code, res.Error.Msg)
	}
	for _, part := range parts {
		if !strings.Contains(res.Error.Msg, part) {
			n.t.Errorf("%s: message lacks %q: %s", verb, part, res.Error.Msg)
		}
	}
}

// state captures what must be the same before and after: the host, IPAM, journals
// and device information. The bridges that the reference plugins leave behind on
// purpose exist once warm has run.
func (n *node) state() harness.HostState {
	n.t.Helper()
	s, err := harness.Capture(n.path("state"), n.path("ipam"), n.path("devinfo"), "/run/netns")
	n.must(err)
	return s
}

// unchanged fails if the state differs from before.
func (n *node) unchanged(before harness.HostState) {
	n.t.Helper()
	if diff := before.Diff(n.state()); diff != "" {
		n.t.Errorf("left behind:\n%s", diff)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
