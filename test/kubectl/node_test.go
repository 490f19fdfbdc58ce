package kubectl

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
	"github.com/manifold-cni/manifold/test/harness"
)

// serial runs the scripts one after the other, because all nodes share the one host
// that the harness provides.
type serial struct{ *testing.T }

func (serial) Parallel() {}

func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

func (s serial) Verbose() bool { return testing.Verbose() }

// node is the node of a script: the agent, the kubelet's checkpoint, and the
// runtime that calls the plugin. Its pods and definitions are the script's files in
// pods/ and definitions/.
type node struct {
	dir     string
	rt      harness.Runtime
	entries []checkpoint.Entry
	agent   *exec.Cmd
	netns   map[string]*harness.NetNS // by pod
	uids    map[string]string         // by pod, with a real API server
}

// uid returns the UID of a script's pod: the API server's if there is one, else
// that of its manifest.
func (n *node) uid(pod string) string {
	if uid, ok := n.uids[pod]; ok {
		return uid
	}
	return "uid-of-" + pod
}

func (n *node) path(elem string) string { return filepath.Join(n.dir, elem) }

// commands are the commands of the scripts.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"node": cmdNode, "cni": cmdCNI, "vfs": cmdVFs, "allocate": cmdAllocate, "agent": cmdAgent, "die": cmdDie, "free": cmdFree, "damage": cmdDamage,
	"exclude": cmdExclude, "logfile": cmdLogFile, "networks": cmdNetworks, "plugin": cmdPlugin,
}

// of returns the node of a script.
func of(ts *testscript.TestScript) *node { return ts.Value("node").(*node) }

// cmdNode sets up the node, with a bridge as default network: "node [KEY=VALUE...]"
// with keys of the agent's configuration.
func cmdNode(ts *testscript.TestScript, _ bool, args []string) {
	n := of(ts)
	n.dir, n.netns = ts.Getenv("WORK"), map[string]*harness.NetNS{}
	ts.Check(os.RemoveAll(n.path("bin")))
	for _, dir := range []string{"bin", "pods", "definitions", "net.d", "kubelet/device-plugins", "devinfo"} {
		ts.Check(os.MkdirAll(n.path(dir), 0o755))
	}
	_, err := harness.NewHost()
	ts.Check(err)
	for _, dir := range []string{pluginDir, programDir} {
		entries, err := os.ReadDir(dir)
		ts.Check(err)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				ts.Check(os.Symlink(filepath.Join(dir, e.Name()), n.path("bin/"+e.Name())))
			}
		}
	}
	ts.Check(os.WriteFile(n.path("net.d/10-default.conflist"), fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"cluster-net","plugins":[{"type":"bridge",
		"bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.88.0.0/16"}}]}`, n.path("ipam")), 0o600))
	agent := map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "podResources": "-", "podsAPI": "-", "snapshot": "-",
		"cniDir": n.path("state"), "cniConfig": n.path("net.d/00-manifold.conflist"), "podManifests": n.path("pods"), "definitionManifests": n.path("definitions"),
	}
	for _, kv := range args {
		key, value, _ := strings.Cut(kv, "=")
		agent[key] = value
	}
	plugin := map[string]any{
		"cniVersion": "1.1.0", "name": "manifold", "type": "manifold", "clusterNetwork": "cluster-net",
		"confDir": n.path("net.d"), "cniDir": n.path("state"), "binDir": n.path("bin"), "agentSocket": n.path("agent.sock"),
		"agentProgram": n.path("bin/manifold-agent"), "agentConfig": n.path("agent.json"), "deviceInfoDir": n.path("devinfo"),
	}
	n.rt = harness.Runtime{Plugin: n.path("bin/manifold"), Path: n.path("bin"), Conf: encode(ts, plugin)}
	inList := maps.Clone(plugin) // the list's name and version count
	delete(inList, "name")
	delete(inList, "cniVersion")
	ts.Check(os.WriteFile(n.path("net.d/00-manifold.conflist"), encode(ts, map[string]any{"cniVersion": "1.1.0", "name": "manifold", "plugins": []any{inList}}), 0o600))
	ts.Check(os.WriteFile(n.path("agent.json"), encode(ts, agent), 0o600))
	ts.Setenv("CONFIG", n.path("agent.json"))
	n.record(ts)
}

func encode(ts *testscript.TestScript, v any) []byte {
	raw, err := json.Marshal(v)
	ts.Check(err)
	return raw
}

// record writes the kubelet's checkpoint.
func (n *node) record(ts *testscript.TestScript) {
	raw, err := checkpoint.Encode(n.entries, nil)
	ts.Check(err)
	ts.Check(os.WriteFile(n.path("kubelet/device-plugins/kubelet_internal_checkpoint"), raw, 0o600))
}

// cmdCNI calls the plugin for a pod of namespace default: "cni ADD POD". The
// command fails if the plugin returns an error.
func cmdCNI(ts *testscript.TestScript, neg bool, args []string) {
	n, verb, pod := of(ts), args[0], args[1]
	id := "sandbox-of-" + pod
	if n.netns[pod] == nil {
		netns, err := harness.NewNetNS(id)
		ts.Check(err)
		n.netns[pod] = netns
		ts.Defer(func() { _ = netns.Delete() }) // the script may have deleted it
	}
	res, err := n.rt.Call(verb, harness.Sandbox{ID: id, NetNS: n.netns[pod].Path, Namespace: "default", Name: pod, UID: n.uid(pod)})
	ts.Check(err)
	_, err = ts.Stdout().Write(res.Stdout)
	ts.Check(err)
	if (res.Status != 0) != neg {
		ts.Fatalf("%s %s: status %d: %s\n%s", verb, pod, res.Status, res.Stdout, res.Stderr)
	}
}

// cmdVFs adds a PF with VFs 0000:5e:01.0 and up: "vfs COUNT" for VFs bound to
// vfio-pci, or "vfs COUNT DRIVER" for VFs with network devices.
func cmdVFs(ts *testscript.TestScript, _ bool, args []string) {
	count, err := strconv.Atoi(args[0])
	ts.Check(err)
	const pf = "0000:5e:00.0"
	tree := sriovtest.New("/run/host") // the harness mounts its sys/ as the host's
	tree.AddPF(sriovtest.PF{Address: pf, Driver: "ice", TotalVFs: count, NUMA: 1})
	for i := range count {
		vf := sriovtest.VF{PF: pf, Index: i, Address: fmt.Sprintf("0000:5e:01.%d", i), Driver: "vfio-pci", IOMMUGroup: fmt.Sprint(100 + i)}
		if len(args) > 1 {
			vf.Driver, vf.NetDev = args[1], fmt.Sprintf("ens1f0v%d", i)
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: vf.NetDev}, PeerName: fmt.Sprintf("wire%d", i)}
			ts.Check(netlink.LinkAdd(link))
			peer, err := netlinksafe.LinkByName(link.PeerName)
			ts.Check(err)
			ts.Check(netlink.LinkSetUp(peer))
		}
		tree.AddVF(vf)
	}
	ts.Check(tree.Err())
}

// cmdAllocate allocates devices to a pod's container: "allocate POD CONTAINER
// RESOURCE ID...".
func cmdAllocate(ts *testscript.TestScript, _ bool, args []string) {
	n := of(ts)
	n.entries = append(n.entries, checkpoint.Entry{
		PodUID: n.uid(args[0]), Container: args[1], Resource: args[2], Devices: []checkpoint.NUMADevices{{Node: 1, IDs: args[3:]}},
	})
	n.record(ts)
}

// cmdAgent starts the agent, or kills it: "agent", "! agent".
func cmdAgent(ts *testscript.TestScript, neg bool, _ []string) {
	n := of(ts)
	if neg {
		ts.Check(n.agent.Process.Kill())
		_ = n.agent.Wait() // it was killed
		ts.Check(os.Remove(n.path("agent.sock")))
		return
	}
	log, err := os.Create(n.path("agent.log"))
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command(n.path("bin/manifold-agent"), "serve", "--config", n.path("agent.json"))
	cmd.Stderr = log
	ts.Check(cmd.Start())
	n.agent = cmd
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have been killed
		_ = cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(n.path("agent.sock")); err == nil {
			return
		}
		if time.Now().After(end) {
			text, err := os.ReadFile(n.path("agent.log"))
			ts.Fatalf("the agent does not serve: %s, %v", text, err)
		}
	}
}

// change edits the keys of a JSON file.
func change(ts *testscript.TestScript, file string, change func(map[string]any)) {
	raw, err := os.ReadFile(file)
	ts.Check(err)
	keys := map[string]any{}
	ts.Check(json.Unmarshal(raw, &keys))
	change(keys)
	ts.Check(os.WriteFile(file, encode(ts, keys), 0o600))
}

// cmdExclude excludes a PF from repairs: "exclude PF".
func cmdExclude(ts *testscript.TestScript, _ bool, args []string) {
	change(ts, of(ts).path("agent.json"), func(keys map[string]any) { keys["reconcileExclude"] = args })
}

// cmdPlugin sets a key of the configuration with which the runtime calls the
// plugin: "plugin KEY=VALUE".
func cmdPlugin(ts *testscript.TestScript, _ bool, args []string) {
	n := of(ts)
	key, value, _ := strings.Cut(args[0], "=")
	keys := map[string]any{}
	ts.Check(json.Unmarshal(n.rt.Conf, &keys))
	keys[key] = value
	n.rt.Conf = encode(ts, keys)
}

// cmdLogFile sets the plugin's log file: "logfile FILE".
func cmdLogFile(ts *testscript.TestScript, _ bool, args []string) {
	changePlugin(ts, "logFile", ts.MkAbs(args[0]))
}

// cmdNetworks sets the networks that every pod gets: "networks [NETWORK...]".
func cmdNetworks(ts *testscript.TestScript, _ bool, args []string) {
	changePlugin(ts, "defaultNetworks", args)
}

// changePlugin sets a key of the plugin's configuration in the runtime's directory.
func changePlugin(ts *testscript.TestScript, key string, value any) {
	change(ts, of(ts).path("net.d/00-manifold.conflist"), func(list map[string]any) {
		list["plugins"].([]any)[0].(map[string]any)[key] = value
	})
}

// cmdDie removes a pod's sandbox without DEL: "die POD".
func cmdDie(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(of(ts).netns[args[0]].Delete())
}

// cmdFree takes a pod's devices away, as when the kubelet allocates them anew after
// the pod has ended: "free POD".
func cmdFree(ts *testscript.TestScript, _ bool, args []string) {
	n := of(ts)
	n.entries = slices.DeleteFunc(n.entries, func(e checkpoint.Entry) bool { return e.PodUID == n.uid(args[0]) })
	n.record(ts)
}

// cmdDamage damages the first line of a pod's journal: "damage POD".
func cmdDamage(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(of(ts).path("state/sandbox-of-"+args[0]+"@eth0.journal"), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte("00000000"), 0)
	ts.Check(errors.Join(err, f.Close()))
}
