package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// delegateCall is one call of a scripted delegate, as logged in the node's file
// "calls".
type delegateCall struct {
	Verb        string `json:"verb"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	IfName      string `json:"ifName"`
	Stdin       struct {
		CNIVersion    string                     `json:"cniVersion"`
		Name          string                     `json:"name"`
		DeviceID      string                     `json:"deviceID"`
		PCIBusID      string                     `json:"pciBusID"`
		RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
		PrevResult    json.RawMessage            `json:"prevResult"`
	} `json:"stdin"`
	raw string
}

// runtimeConfig returns a string from runtimeConfig, empty if it is missing.
func (c *delegateCall) runtimeConfig(key string) string {
	var s string
	if raw, ok := c.Stdin.RuntimeConfig[key]; ok && json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}

// calls returns the logged calls of scripted delegates, filtered by verb if verbs
// are given.
func (n *node) calls(verbs ...string) []delegateCall {
	n.t.Helper()
	return n.callsIn("calls", verbs...)
}

// callsIn is like calls, with another log.
func (n *node) callsIn(log string, verbs ...string) []delegateCall {
	n.t.Helper()
	text, err := os.ReadFile(n.path(log))
	if !os.IsNotExist(err) {
		n.must(err)
	}
	var out []delegateCall
	for line := range bytes.Lines(text) {
		call := delegateCall{raw: string(line)}
		n.must(json.Unmarshal(line, &call))
		wanted := len(verbs) == 0
		for _, v := range verbs {
			wanted = wanted || v == call.Verb
		}
		if wanted {
			out = append(out, call)
		}
	}
	return out
}

// containerOf returns a container that asks for a number of devices of a resource.
func containerOf(name corev1.ResourceName, containerName string, devices int) corev1.Container {
	return corev1.Container{Name: containerName, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
		name: *resource.NewQuantity(int64(devices), resource.DecimalSI),
	}}}
}

// advertised returns devices of one NUMA node as a device plugin advertises them.
func (n *node) advertised(ids ...string) []fakekubelet.Device {
	var out []fakekubelet.Device
	for _, id := range ids {
		out = append(out, fakekubelet.Device{ID: id, NUMA: 0})
	}
	return out
}

// TestClauseDevices proves the clauses of devices, each under its id.
func TestClauseDevices(t *testing.T) {
	t.Run("DV-map", deviceMap)
	t.Run("DV-container", deviceOfContainer)
	t.Run("DV-inject", deviceInjected)
	t.Run("DV-missing", deviceMissing)
	t.Run("DV-none", deviceNone)
	t.Run("DV-pinned", devicePinned)
	t.Run("DV-static-conflict", deviceStaticConflict)
	t.Run("DV-sources", deviceSources)
	t.Run("DV-dra", devicesOfClaims)
	t.Run("DV-del-same", deviceOfDel)
}

// logged returns a network that moves its device and whose first plugin logs its
// input.
func (n *node) logged() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","plugins":[{"type":"scripted","log":%q,"script":{"ADD":{"stdout":"{}"},"DEL":{"stdout":"\n"}}},{"type":"host-device","capabilities":{"deviceID":true}}]}`, n.path("calls"))
}

// given returns the devices that the delegates got at ADD, in order.
func (n *node) given() []string {
	n.t.Helper()
	var out []string
	for _, c := range n.calls("ADD") {
		out = append(out, c.Stdin.DeviceID)
	}
	return out
}

// allocation lists a pod's containers with their devices of nicA, in the order of
// the device plugin's response.
type allocation struct {
	init, sidecar, app []held
}

type held struct {
	container string
	devices   []string
}

// admitted admits a pod with this allocation.
func (n *kubeletNode) admitted(networks string, a allocation) *pod {
	n.t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	spec, pins := corev1.PodSpec{}, fakekubelet.Pins{}
	add := func(to *[]corev1.Container, list []held, restart *corev1.ContainerRestartPolicy) {
		for _, h := range list {
			c := container(h.container, len(h.devices))
			c.RestartPolicy = restart
			*to, pins[h.container] = append(*to, c), map[string][]string{nicA: h.devices}
		}
	}
	add(&spec.InitContainers, a.init, nil)
	add(&spec.InitContainers, a.sidecar, &always)
	add(&spec.Containers, a.app, nil)
	p, err := n.kubelet.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: "default", Annotations: map[string]string{netattach.NetworksAnnotation: networks}}, Spec: spec,
	}, pins)
	n.must(err)
	return n.sandbox("app", string(p.UID))
}

func deviceMap(t *testing.T) {
	for name, tc := range map[string]struct {
		deviceOrder string
		pod         func(sf, vf []string) allocation
		want        func(sf, vf []string) []string
	}{
		"containers in the pod's order": {"address",
			func(sf, _ []string) allocation { return allocation{app: []held{{"zeta", sf[2:3]}, {"alpha", sf[1:2]}}} },
			func(sf, _ []string) []string { return []string{sf[2], sf[1]} }},
		"init containers first": {"address",
			func(sf, _ []string) allocation {
				return allocation{init: []held{{"setup", sf[5:6]}}, sidecar: []held{{"proxy", sf[4:5]}}, app: []held{{"app", []string{sf[5], sf[2]}}}}
			},
			func(sf, _ []string) []string { return []string{sf[5], sf[4], sf[2]} }},
		"natural order of the ID": {"address",
			func(sf, _ []string) allocation {
				return allocation{app: []held{{"app", []string{sf[9], sf[8], sf[1]}}}}
			},
			func(sf, _ []string) []string { return []string{sf[1], sf[8], sf[9]} }},
		"ascending by PCI address": {"address",
			func(_, vf []string) allocation {
				return allocation{app: []held{{"app", []string{vf[8], vf[0], vf[7]}}}}
			},
			func(_, vf []string) []string { return []string{vf[0], vf[7], vf[8]} }},
		"in the device plugin's order": {"plugin",
			func(_, vf []string) allocation {
				return allocation{app: []held{{"app", []string{vf[8], vf[0], vf[7]}}}}
			},
			func(_, vf []string) []string { return []string{vf[8], vf[0], vf[7]} }},
	} {
		t.Run(name, func(t *testing.T) {
			n := newKubeletNode(t)
			n.serve()
			n.withConf(map[string]any{"deviceOrder": tc.deviceOrder})
			sf, vf := n.manyDevices()
			want := tc.want(sf, vf)
			network := "moved"
			if strings.HasPrefix(want[0], "0000:") {
				network = "still" // used by a process of the pod: there is nothing to move
			}
			n.define("moved", nicA, n.logged())
			n.define("still", nicA, strings.Replace(silent, `"script"`, `"log":"`+n.path("calls")+`","script"`, 1))
			p := n.admitted(strings.TrimSuffix(strings.Repeat(network+",", len(want)), ","), tc.pod(sf, vf))
			n.succeed("ADD", p)
			if got := n.given(); !slices.Equal(got, want) {
				t.Errorf("devices %v, want %v", got, want)
			}
			n.succeed("DEL", p)
		})
	}
}

// manyDevices advertises eleven subfunctions with network devices and nine
// userspace VFs as nicA.
func (n *kubeletNode) manyDevices() (sf, vf []string) {
	n.t.Helper()
	for i := range 11 {
		sf = append(sf, n.device(fmt.Sprintf("nic%d", i)))
	}
	vf = n.userspaceVFs(9)
	n.must(n.kubelet.SetDevices(nicA, n.advertised(append(slices.Clone(sf), vf...)...)...))
	return sf, vf
}

func deviceOfContainer(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	p, macs := n.twoDevicePod("unused") // defines the network and creates the devices
	n.must(p.ns.Delete())
	of := func(containers ...string) string {
		var list []string
		for _, c := range containers {
			list = append(list, `{"name":"nic-a","manifold.dev/container":"`+c+`"}`)
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	p = n.addPod("app", of("c2", "c1"), "c1", "c2")
	n.allocate(p, "c1", nicA, "mlx5_core.sf.1") // nic0
	n.allocate(p, "c2", nicA, "mlx5_core.sf.2") // nic1
	n.succeed("ADD", p)
	for ifName, dev := range map[string]string{"net1": "nic1", "net2": "nic0"} {
		if got := n.interfaceOf(p, ifName).HardwareAddr; got.String() != macs[dev].String() {
			t.Errorf("%s has address %s, want device %s with %s", ifName, got, dev, macs[dev])
		}
	}
	n.succeed("DEL", p)
	other := n.addPod("other", of("c1", "last"), "c1")
	n.allocate(other, "c1", nicA, "mlx5_core.sf.1")
	n.refusedWithoutTrace(other, 105, "container last", "allocated 0", nicA, "network default/nic-a")
}

func deviceInjected(t *testing.T) {
	first := `{"type":"scripted","log":"%[1]s","script":{"ADD":{"stdout":"{}"},"DEL":{"stdout":"\n"}}}`
	middle := `{"type":"scripted","device":"nic0","log":"%[1]s","capabilities":{"deviceID":true}}`
	single := `{"cniVersion":"1.0.0","name":"net",` + middle[1:]
	list := `{"cniVersion":"1.0.0","name":"net","plugins":[` + first + `,` + middle + `]}`
	for name, tc := range map[string]struct {
		file, config string
		plugins      int
	}{
		"inline single":  {"", single, 1},
		"inline list":    {"", list, 2},
		"on-disk single": {"net.d/20-net.conf", single, 1},
		"on-disk list":   {"net.d/20-net.conflist", list, 2},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.serve()
			id := n.device("nic0")
			config := fmt.Sprintf(tc.config, n.path("calls"))
			if tc.file != "" {
				n.file(tc.file, config)
				config = ""
			}
			n.define("net", nicA, config)
			p := n.addPod("app", "net", "c1")
			n.allocate(p, "c1", nicA, id)
			n.succeed("ADD", p)
			calls := n.calls("ADD")
			if len(calls) != tc.plugins {
				t.Fatalf("%d plugins ran, want %d", len(calls), tc.plugins)
			}
			for i, c := range calls {
				want := ""
				if i == tc.plugins-1 {
					want = id // the one with the capability
				}
				if c.Stdin.DeviceID != id || c.Stdin.PCIBusID != id || c.runtimeConfig("deviceID") != want {
					t.Errorf("plugin %d was given %s", i+1, c.raw)
				}
			}
			n.succeed("DEL", p)
		})
	}
}

func deviceMissing(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.define("nic-a", nicA, hostDevice)
	p := n.addPod("few", "plain,nic-a,nic-a,nic-a", "c1", "c2")
	n.allocate(p, "c1", nicA, n.device("nic0"))
	n.allocate(p, "c2", nicA, n.device("nic1"))
	n.refusedWithoutTrace(p, 105, "resource "+nicA, "network default/nic-a", "3 attachments ask", "kubelet allocated 2")
}

func deviceNone(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.define("nic-b", nicB, hostDevice)
	// A definition that names a device of its own must not bypass the allocation
	// silently.
	n.device("nic0")
	n.define("pinned-by-hand", nicB, `{"cniVersion":"1.0.0","type":"host-device","device":"nic0"}`)
	for i, network := range []string{"nic-b", "pinned-by-hand"} {
		p := n.addPod(fmt.Sprintf("none-%d", i), "plain,"+network, "c1")
		n.allocate(p, "c1", nicA, n.device(fmt.Sprintf("nic1%d", i)))
		n.refusedWithoutTrace(p, 105, "resource "+nicB, "network default/"+network, "allocated 0")
	}
}

func devicePinned(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	low, high, foreign := n.device("nic0"), n.device("nic1"), n.device("nic2")
	n.define("nic-a", nicA, hostDevice)
	pin := func(id string) string { return `[{"name":"nic-a","deviceID":"` + id + `"},{"name":"nic-a"}]` }
	p := n.addPod("own", pin(high), "c1")
	n.allocate(p, "c1", nicA, low, high)
	other := n.addPod("other", "", "c1")
	n.allocate(other, "c1", nicA, foreign)
	n.succeed("ADD", p)
	for ifName, dev := range map[string]string{"net1": "nic1", "net2": "nic0"} {
		if got := n.interfaceOf(p, ifName).Alias; got != dev {
			t.Errorf("%s is %s, want %s", ifName, got, dev)
		}
	}
	n.succeed("DEL", p)
	thief := n.addPod("thief", pin(foreign), "c1")
	n.allocate(thief, "c1", nicA, low, high)
	n.refusedWithoutTrace(thief, 106, "device "+foreign, "resource "+nicA, "network default/nic-a", "not among the pod's", low)
}

func deviceStaticConflict(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	own := n.device("nic0")
	n.device("nic1")
	n.define("hard", nicA, `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true},"deviceID":"0000:21:10.0","pciBusID":"0000:21:10.0"}`)
	p := n.addPod("app", "hard", "c1")
	n.allocate(p, "c1", nicA, own)
	res := n.succeed("ADD", p)
	if got := n.interfaceOf(p, "net1").Alias; got != "nic0" {
		t.Errorf("net1 is %s, want the allocated nic0", got)
	}
	for _, part := range []string{"0000:21:10.0", own, "default/hard"} {
		if !strings.Contains(string(res.Stderr), part) {
			t.Errorf("the log lacks %q: %s", part, res.Stderr)
		}
	}
	n.succeed("DEL", p)
}

func deviceSources(t *testing.T) {
	for name, tc := range map[string]struct {
		without string // the source left out of the agent's configuration
		prepare func(n *kubeletNode)
	}{
		"Get":        {"checkpoint", func(n *kubeletNode) { n.kubelet.SetError(errors.New("broken"), "List") }},
		"List":       {"checkpoint", func(n *kubeletNode) { n.kubelet.SetError(status.Error(codes.Unimplemented, "older kubelet"), "Get") }},
		"checkpoint": {"podResources", func(*kubeletNode) {}},
	} {
		t.Run(name+" alone", func(t *testing.T) {
			n := newKubeletNode(t, tc.without)
			n.serve()
			n.warm()
			ids := n.devices("nic0", "nic1")
			tc.prepare(n)
			p := n.admitted("nic-a", allocation{app: []held{{"c1", ids[1:]}}})
			n.succeed("ADD", p)
			if got := n.interfaceOf(p, "net1").Alias; got != "nic1" {
				t.Errorf("net1 is %s, want nic1", got)
			}
			n.succeed("DEL", p)
		})
	}
	t.Run("a stale checkpoint yields to the live source", func(t *testing.T) {
		n := newKubeletNode(t)
		n.serve()
		ids := n.devices("nic0", "nic1")
		p := n.admitted("nic-a", allocation{app: []held{{"c1", ids[:1]}}})
		n.rewriteCheckpoint(checkpoint.Entry{PodUID: p.UID, Container: "c1", Resource: nicA, Devices: numa(ids[1])})
		n.succeed("ADD", p)
		if got := n.interfaceOf(p, "net1").Alias; got != "nic0" {
			t.Errorf("net1 is %s, want the live source's nic0", got)
		}
		n.succeed("DEL", p)
	})
	t.Run("another pod's device is refused", func(t *testing.T) {
		n := newKubeletNode(t)
		n.serve()
		n.warm()
		ids := n.devices("nic0", "nic1")
		p := n.admitted("plain,nic-a", allocation{app: []held{{"c1", ids[:1]}}})
		n.rewriteCheckpoint(
			checkpoint.Entry{PodUID: p.UID, Container: "c1", Resource: nicA, Devices: numa(ids[1])},
			checkpoint.Entry{PodUID: "00000000-0000-4000-8000-0000000000bb", Container: "c1", Resource: nicA, Devices: numa(ids[0])})
		n.refusedWithoutTrace(p, 106, "contradict", ids[0], "resource "+nicA)
	})
}

func numa(ids ...string) []checkpoint.NUMADevices {
	return []checkpoint.NUMADevices{{Node: 0, IDs: ids}}
}

// rewriteCheckpoint replaces the content of the checkpoint.
func (n *kubeletNode) rewriteCheckpoint(entries ...checkpoint.Entry) {
	n.t.Helper()
	raw, err := checkpoint.Encode(entries, nil)
	n.must(err)
	n.must(n.kubelet.CorruptCheckpoint(func([]byte) []byte { return raw }))
}

func deviceOfDel(t *testing.T) {
	n := newStatusNode(t)
	ids := n.devices("nic0", "nic1")
	definition(n.api, "moved", nicA, n.logged())
	n.kubeletNode.define("moved", nicA, n.logged())
	p := n.apiPod(n.api, "app", "moved,moved", container("c1", 2))
	n.succeed("ADD", p)
	n.gone(p)
	n.succeed("DEL", p)
	got := map[string]string{}
	for _, c := range n.calls("DEL") {
		got[c.IfName] = c.Stdin.DeviceID + " " + c.Stdin.PCIBusID
	}
	if want := map[string]string{"net1": ids[0] + " " + ids[0], "net2": ids[1] + " " + ids[1]}; !reflect.DeepEqual(got, want) {
		t.Errorf("DEL was given %v, want %v", got, want)
	}
	n.onHost("nic0", "nic1")
	n.emptySandbox(p)
}

// onHost fails unless these network devices are in the host's namespace.
func (n *node) onHost(names ...string) {
	n.t.Helper()
	for _, name := range names {
		if _, err := netlinksafe.LinkByName(name); err != nil {
			n.t.Errorf("%s on the host: %v", name, err)
		}
	}
}

// gone removes everything that the plan was made from or by: pod and definitions,
// API server, kubelet and its files, the agent and its program.
func (n *statusNode) gone(p *pod) {
	n.t.Helper()
	n.api.DeletePod("default", p.Name)
	n.api.Stop()
	n.must(n.kubelet.DeletePod(types.UID(p.UID)))
	n.kubelet.Stop()
	n.must(errors.Join(os.RemoveAll(n.path("kubelet")), os.RemoveAll(n.path("definitions")), os.Remove(n.path("bin/manifold-agent")), os.Remove(n.path("agent.sock"))))
}

// TestClauseVerification proves the clauses of verification that software devices
// can prove. The SR-IOV lab proves those that need a physical function: VF-pf,
// VF-userspace, the PCI address of VF-parent and the PF's side of VF-returned.
func TestClauseVerification(t *testing.T) {
	t.Run("VF-exists", verifyExists)
	t.Run("VF-parent", verifyParent)
	t.Run("VF-result", verifyResult)
	t.Run("VF-fail", verifyFail)
	t.Run("VF-returned", verifyReturned)
}

// liar returns a network whose delegate does its work and lies about it.
func liar(lie, more string) string {
	return `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.61.0.2/24"]` + more + `,"script":{"ADD":{"lie":"` + lie + `"}}}`
}

func verifyExists(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.device("nic0")
	// An interface other than the one named, one that was never created, and one that
	// stayed on the host.
	n.define("other", "", answers("1.0.0", `{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/n"},{"name":"ghost0","sandbox":"/n"}]}`, "10.61.0.2/24"))
	n.define("never", "", strings.Replace(silent, `"stdout":"\n"`, `"stdout":"{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"net1\",\"sandbox\":\"/n\"}]}"`, 1))
	n.define("left", "", liar("left", `,"device":"nic0"`))
	for network, want := range map[string]string{"other": "interface ghost0", "never": "interface net1", "left": "interface net1"} {
		n.refusedWithoutTrace(n.addPod("pod-"+network, network), 111, want+": wanted present, found absent", "network default/"+network)
	}
}

func verifyParent(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	own := n.device("nic0")
	n.device("nic1")
	// The delegate moves another device than its own.
	n.define("swapped", nicA, `{"cniVersion":"1.0.0","type":"scripted","device":"nic1"}`)
	p := n.addPod("swapped-pod", "swapped", "c1")
	n.allocate(p, "c1", nicA, own)
	n.refusedWithoutTrace(p, 111, "device "+own, "resource "+nicA, "network default/swapped", "network device nic0 of the allocated device: wanted in the sandbox, found on the host")
	n.onHost("nic0", "nic1")
	// The delegate moves nothing and creates an unrelated interface.
	n.define("made-up", nicA, `{"cniVersion":"1.0.0","type":"scripted"}`)
	p = n.addPod("made-up-pod", "made-up", "c1")
	n.allocate(p, "c1", nicA, own)
	n.refusedWithoutTrace(p, 111, "device "+own, "nic0 of the allocated device")
	n.define("right", nicA, `{"cniVersion":"1.0.0","type":"scripted","device":"nic0"}`)
	p = n.addPod("right-pod", "right", "c1")
	n.allocate(p, "c1", nicA, own)
	n.succeed("ADD", p)
	n.succeed("DEL", p)
}

func verifyResult(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(os.Symlink(filepath.Join(programDir, "scripted"), n.path("bin/vlan"))) // a plugin whose "mtu" is the interface's
	const able = `,"capabilities":{"mac":true,"ips":true}`                        // and does nothing about it
	for name, tc := range map[string]struct {
		config, networks string
		parts            []string
	}{
		"mac":           {liar("mac", ""), "mac", []string{"MAC (result): wanted 02:00:00:00:00:99"}},
		"mtu":           {liar("mtu", ""), "mtu", []string{"MTU (result): wanted 9000, found 1500"}},
		"address":       {liar("address", ""), "address", []string{"address (result): wanted 192.0.2.99/24", "10.61.0.2/24"}},
		"mac-asked":     {liar("", able), `[{"name":"mac-asked","mac":"02:00:00:00:06:01"}]`, []string{"MAC (requested): wanted 02:00:00:00:06:01"}},
		"address-asked": {liar("", able), `[{"name":"address-asked","ips":["10.61.0.9/24"]}]`, []string{"address (requested): wanted 10.61.0.9/24", "10.61.0.2/24"}},
		"mtu-configured": {`{"cniVersion":"1.0.0","plugins":[{"type":"scripted"},{"type":"vlan","mtu":1400,"script":{"ADD":{"stdout":"{}"},"DEL":{"stdout":"\n"}}}]}`, "mtu-configured",
			[]string{"MTU (configuration): wanted 1400, found 1500"}},
	} {
		n.define(name, "", tc.config)
		n.refusedWithoutTrace(n.addPod(name+"-pod", tc.networks), 111, append(tc.parts, "network default/"+name)...)
	}
	n.define("honest", "", `{"cniVersion":"1.0.0","type":"scripted","mac":"02:00:00:00:06:01","mtu":1400,"addresses":["10.61.0.9/24"]`+able+`}`)
	p := n.addPod("honest-pod", `[{"name":"honest","mac":"02:00:00:00:06:01","ips":["10.61.0.9/24"]}]`)
	n.succeed("ADD", p)
	n.succeed("DEL", p)
}

func verifyFail(t *testing.T) {
	const finding = "MAC (result): wanted 02:00:00:00:00:99"
	for mode, tc := range map[string]struct{ attached, reported bool }{
		"enforce": {false, true}, "warn": {true, true}, "off": {true, false},
	} {
		t.Run(mode, func(t *testing.T) {
			n := newStatusNode(t)
			n.withConf(map[string]any{"verify": mode})
			definition(n.api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
			definition(n.api, "liar", "", liar("mac", ""))
			p := n.apiPod(n.api, "app", "plain,liar")
			res := n.call("ADD", p)
			if attached := res.Status == 0; attached != tc.attached {
				t.Errorf("attached %v, want %v: %s", attached, tc.attached, res.Stdout)
			}
			if logged := strings.Contains(string(res.Stderr), finding); logged != tc.reported {
				t.Errorf("logged %v, want %v: %s", logged, tc.reported, res.Stderr)
			}
			n.eventually("the event", func() bool { return len(n.api.Events()) > 0 })
			ev := n.api.Events()[0]
			if told := ev.Type == corev1.EventTypeWarning && strings.Contains(ev.Message, finding); told != tc.reported {
				t.Errorf("event %s %q, want it reported: %v", ev.Type, ev.Message, tc.reported)
			}
			if !tc.attached {
				n.emptySandbox(p)
			}
			n.succeed("DEL", p)
			n.emptySandbox(p)
		})
	}
}

func verifyReturned(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	id := n.device("nic0")
	n.define("nic-a", nicA, hostDevice)
	p := n.addPod("good", "nic-a", "c1")
	n.allocate(p, "c1", nicA, id)
	before := n.state()
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.onHost("nic0")
	n.unchanged(before)
	n.must(p.ns.Delete())
	// A delegate whose DEL succeeds without returning the device.
	n.define("keeper", nicA, `{"cniVersion":"1.0.0","type":"scripted","device":"nic0","script":{"DEL":{"stdout":"\n"}}}`)
	p = n.addPod("bad", "keeper", "c1")
	n.allocate(p, "c1", nicA, id)
	n.succeed("ADD", p)
	for range 2 { // reported again until it is back
		n.refuse("DEL", p, 115, "pod default/bad", "network default/keeper", "device "+id, "resource "+nicA, "still in the sandbox")
	}
	host, err := ns.GetCurrentNS()
	n.must(err)
	defer host.Close()
	n.must(p.ns.Do(func() error {
		link, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, "nic0"), netlink.LinkSetAlias(link, ""), netlink.LinkSetNsFd(link, int(host.Fd())))
	}))
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.onHost("nic0")
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}
