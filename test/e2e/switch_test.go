package e2e

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/test/harness"
)

// multusList and multusSingle are delegates in a sandbox's file of Multus, in the
// form that its releases write: %[1]s is the configuration, %[2]s the same in
// base64.
const (
	multusList = `{"Conf":{"cniVersion":"1.0.0","name":"cluster-net","ipam":{},"dns":{}},"ConfList":%[1]s,
		"CNINetworkConfigList":{"Name":"","CNIVersion":"","DisableCheck":false,"Plugins":null,"Bytes":null},
		"Name":"","IsFilterV4Gateway":false,"IsFilterV6Gateway":false,"Bytes":%[2]q}`
	multusSingle = `{"Conf":%[1]s,"ConfList":{"cniVersion":"1.0.0","name":"net","plugins":null},
		"CNINetworkConfigList":{"Name":"","CNIVersion":"","DisableCheck":false,"Plugins":null,"Bytes":null},
		"Name":"default/net","ifnameRequest":"data","IsFilterV4Gateway":false,"IsFilterV6Gateway":false,"Bytes":%[2]q}`
)

// attachAsMultus attaches a pod to the cluster network and to one definition as
// Multus does: with libcni, whose records are in cniDir, and a file of its own.
func (n *node) attachAsMultus(name string) *pod {
	n.t.Helper()
	p := n.addPod(name, "")
	raw, err := os.ReadFile(n.path("net.d/10-default.conflist"))
	n.must(err)
	def, err := libcni.NetworkConfFromBytes(raw)
	n.must(err)
	text := strings.Replace(n.bridge("old", "10.90.0.0/16"), "{", `{"name":"net",`, 1)
	single, err := libcni.NetworkPluginConfFromBytes([]byte(text))
	n.must(err)
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
	rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: "eth0"}
	_, err = cni.AddNetworkList(context.Background(), def, rt)
	n.must(err)
	rt.IfName = "data"
	_, err = cni.AddNetwork(context.Background(), single, rt)
	n.must(err)
	delegate := func(form, config string) string {
		return fmt.Sprintf(form, config, base64.StdEncoding.EncodeToString([]byte(config)))
	}
	n.file("state/"+p.ID, "["+delegate(multusList, string(raw))+","+delegate(multusSingle, text)+"]")
	return p
}

// warmMultus creates the bridges and directories that stay.
func warmMultus(t *testing.T) *node {
	n := newNode(t, nil)
	n.warm()
	p := n.attachAsMultus("first")
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.must(os.RemoveAll(n.path("ipam")))
	return n
}

func TestPodsOfMultusAreDeletedAfterTheSwitch(t *testing.T) {
	for name, lose := range map[string]func(n *node, p *pod){
		"both":               func(*node, *pod) {},
		"without its file":   func(n *node, p *pod) { n.must(os.Remove(n.path("state/" + p.ID))) },
		"without libcni's":   func(n *node, _ *pod) { n.must(os.RemoveAll(n.path("state/results"))) },
		"its file broken":    func(n *node, p *pod) { n.file("state/"+p.ID, "[{") },
		"netns gone":         func(n *node, p *pod) { n.must(p.ns.Delete()) },
		"one of libcni's":    func(n *node, p *pod) { n.must(os.Remove(n.path("state/results/net-" + p.ID + "-data"))) },
		"one never attached": func(n *node, p *pod) { n.addDelegates(p, neverAttached) },
		"never, netns gone":  func(n *node, p *pod) { n.addDelegates(p, neverAttached); n.must(p.ns.Delete()) },
		"three cannot be read": func(n *node, p *pod) {
			n.must(os.RemoveAll(n.path("state/results")))
			n.addDelegates(p, `null`, `{"Bytes":"%%%"}`, `{"Bytes":"bm90IGpzb24="}`)
		},
		"records of nothing": func(n *node, p *pod) {
			for i, config := range []string{
				``, `null`, `{"name":"x","plugins":[]}`, `{"name":"x"}`, `{"name":"x","type":"../../bin/sh"}`, `{"name":"x","type":".."}`, `{"name":"x","type":"."}`,
				`{"name":"x","cniVersion":"bogus","type":"bridge"}`, `{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","ipam":{"type":".."}}]}`,
			} {
				n.record("state", p, fmt.Sprintf("lost%d", i), config)
			}
		},
		"configuration new": func(n *node, _ *pod) {
			n.file("net.d/10-default.conflist", `{"name":"cluster-net","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := warmMultus(t)
			before := n.state()
			p := n.attachAsMultus("pod")
			lose(n, p)
			n.succeed("DEL", p)
			if !strings.HasSuffix(name, "netns gone") {
				n.must(p.ns.Delete())
			}
			n.settles(func() string { return withoutGone(before.Diff(n.state())) })
			if name != "configuration new" {
				n.succeed("DEL", p)
			}
		})
	}
}

// neverAttached is a delegate in the file of Multus whose ADD failed, as every DEL
// will.
var neverAttached = func() string {
	config := `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","bridge":"old"},{"type":"tuning","sysctl":7}]}`
	return fmt.Sprintf(`{"ConfList":%s,"ifnameRequest":"net7","Bytes":%q}`, config, base64.StdEncoding.EncodeToString([]byte(config)))
}()

// addDelegates adds delegates to a sandbox's file of Multus.
func (n *node) addDelegates(p *pod, delegates ...string) {
	n.t.Helper()
	file := "state/" + p.ID
	n.file(file, strings.TrimSuffix(n.read(file), "]")+","+strings.Join(delegates, ",")+"]")
}

// record writes a libcni record for a sandbox into a cniDir.
func (n *node) record(dir string, p *pod, network, config string) {
	n.t.Helper()
	raw, err := json.Marshal(map[string]any{
		"kind": libcni.CNICacheV1, "containerId": p.ID, "config": []byte(config), "ifName": "net9", "networkName": network, "netns": p.NetNS,
		"result": map[string]string{"cniVersion": "1.0.0"},
	})
	n.must(err)
	n.file(dir+"/results/"+network+"-"+p.ID+"-net9", string(raw))
}

// attachLogged attaches a pod as Multus does, to four networks that log their
// calls, two of them on devices.
func (n *node) attachLogged(p *pod) {
	n.t.Helper()
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
	var file []string
	for i, a := range []struct{ ifName, requested, device string }{
		{"eth0", "", ""}, {"net1", "", "0000:5e:01.0"}, {"data", "data", "0000:5e:01.1"}, {"net3", "", ""},
	} {
		config := n.scripted(fmt.Sprintf(`,"name":"logged-%d","capabilities":{"deviceID":true}`, 9-i))
		conf, err := libcni.NetworkPluginConfFromBytes([]byte(config))
		n.must(err)
		rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: a.ifName}
		if a.device != "" {
			rt.CapabilityArgs = map[string]any{"deviceID": a.device}
		}
		_, err = cni.AddNetwork(context.Background(), conf, rt)
		n.must(err)
		file = append(file, fmt.Sprintf(`{"Conf":%s,"ifnameRequest":%q,"deviceID":%q,"Bytes":%q}`,
			config, a.requested, a.device, base64.StdEncoding.EncodeToString([]byte(config))))
	}
	n.file("state/"+p.ID, "["+strings.Join(file, ",")+"]")
}

// TestPodsOfMultusAreReleasedInReverse proves that each attachment is released with
// its device, from either record.
func TestPodsOfMultusAreReleasedInReverse(t *testing.T) {
	reverse := []string{"net3", "data 0000:5e:01.1", "net1 0000:5e:01.0", "eth0"}
	for name, tc := range map[string]struct {
		lose string // file or directory
		want []string
	}{
		"both":             {"none", reverse},
		"without libcni's": {"results", reverse},
		"without its file": {"", []string{"data 0000:5e:01.1", "net1 0000:5e:01.0", "net3", "eth0"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			p := n.addPod("pod", "")
			n.attachLogged(p)
			n.must(os.RemoveAll(n.path("state/" + cmp.Or(tc.lose, p.ID))))
			n.succeed("DEL", p)
			var got []string
			for _, c := range n.calls("DEL") {
				got = append(got, strings.TrimSpace(c.IfName+" "+c.runtimeConfig("deviceID")))
			}
			if tc.lose == "" && len(got) == len(reverse) { // libcni keeps no order: only the default network's position is known
				slices.Sort(got[:len(got)-1])
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("released %q, want %q", got, tc.want)
			}
			n.emptySandbox(p)
		})
	}
}

// asking makes a network's plugin capable of everything that a pod can ask for in a
// file of Multus. asked is such a request, as runtimeConfig.
const (
	asking = `,"capabilities":{"ips":true,"mac":true,"infinibandGUID":true}`
	asked  = `{"infinibandGUID":"c2:11:22:33:44:55:66:77","ips":["10.1.2.3/24"],"mac":"02:00:00:00:00:07"}`
)

// wantAsked fails unless the last DEL of the node's scripted delegates got what the
// pod asked for.
func (n *node) wantAsked() {
	n.t.Helper()
	calls := n.calls("DEL")
	if len(calls) == 0 {
		n.t.Fatal("no DEL")
	}
	got, err := json.Marshal(calls[len(calls)-1].Stdin.RuntimeConfig)
	n.must(err)
	if string(got) != asked {
		n.t.Errorf("DEL was given %s, want %s", got, asked)
	}
}

// TestPodsOfMultusAreReleasedWithWhatTheyAskedFor proves that the file of Multus
// alone is enough for that.
func TestPodsOfMultusAreReleasedWithWhatTheyAskedFor(t *testing.T) {
	n := newNode(t, nil)
	p, config := n.addPod("pod", ""), n.scripted(`,"name":"net"`+asking)
	n.file("state/"+p.ID, fmt.Sprintf(`[{"Conf":%s,"macRequest":"02:00:00:00:00:07","infinibandGUIDRequest":"c2:11:22:33:44:55:66:77",
		"ipRequest":["10.1.2.3/24"],"Bytes":%q}]`, config, base64.StdEncoding.EncodeToString([]byte(config))))
	n.succeed("DEL", p)
	n.wantAsked()
}

// TestSwitchingBackKeepsWhatPodsAskedFor proves that Multus runs DEL with it.
func TestSwitchingBackKeepsWhatPodsAskedFor(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	n.link2opt()
	n.must(os.Symlink(filepath.Join(n.bin, "scripted"), n.path("opt/scripted")))
	n.rt = n.installedRuntime()
	n.define("asking", "", n.scripted(`,"name":"net","addresses":["10.1.2.3/24"],"mac":"02:00:00:00:00:07"`+asking))
	p := n.addPod("pod", `[{"name":"asking","ips":["10.1.2.3/24"],"mac":"02:00:00:00:00:07","infiniband-guid":"c2:11:22:33:44:55:66:77"}]`)
	n.succeed("ADD", p)
	if out, err := n.install("uninstall", "--to-multus", n.path("multus")); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	n.deleteAsMultus(n.path("multus"), p)
	n.wantAsked()
}

// TestSwitchingBackWithADamagedJournal proves that the sandbox is handed over from
// libcni's records. A record that could never run is left out and does not affect
// the others; one that no definition could contain still runs. A sandbox without
// records gets no file, because a file without delegates would tell Multus that
// nothing is left of it.
func TestSwitchingBackWithADamagedJournal(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	n.link2opt()
	n.rt = n.installedRuntime()
	bad, good, bare := n.addPod("bad", "plain"), n.addPod("good", "plain"), n.addPod("bare", "")
	for _, p := range []*pod{bad, good, bare} {
		n.succeed("ADD", p)
	}
	for _, p := range []*pod{bad, bare} {
		n.file("installed/"+p.ID+"@eth0.journal", "00000000 {}\n")
	}
	n.must(os.Remove(n.path("installed/results/cluster-net-" + bare.ID + "-eth0")))
	for i, config := range []string{`{`, `null`, `{"name":"x","cniVersion":"1.0.0"}`, `{"name":"x","type":".."}`} {
		n.record("installed", bad, fmt.Sprintf("lost%d", i), config)
	}
	n.record("installed", bad, "odd", n.scripted(`,"name":"odd","args":"of its own"`))
	out, err := n.install("uninstall", "--to-multus", n.path("multus"))
	for _, want := range []string{
		"journal is damaged, without the record of network ", `network "lost0", interface "net9" (`, `network "lost3", interface "net9" (`, ", " + bad.ID,
		"given no file, since its journal is damaged and libcni has no records of it", "what a pod would get now, " + bare.ID,
	} {
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("uninstall: %v\n%s, want %q", err, out, want)
		}
	}
	if raw, err := os.ReadFile(n.path("multus/" + bad.ID)); err != nil || !strings.Contains(string(raw), `"args":"of its own"`) {
		t.Errorf("the file for Multus is %s, %v", raw, err)
	}
	if exists(n.path("multus/" + bare.ID)) {
		t.Error("Multus got a file for a sandbox without records")
	}
	for _, p := range []*pod{bad, good} {
		n.deleteAsMultus(n.path("multus"), p)
		n.emptySandbox(p)
	}
}

func TestPodsOfMultusAreChecked(t *testing.T) {
	n := warmMultus(t)
	p := n.attachAsMultus("pod")
	n.succeed("CHECK", p)
	n.must(os.RemoveAll(n.path("ipam")))
	n.refuse("CHECK", p, 999, "cluster-net", "default/pod")
}

// TestPodsOfMultusAreCheckedWhereTheNetworkKnowsCheck proves that only networks
// from CNI 0.4.0 on are checked.
func TestPodsOfMultusAreCheckedWhereTheNetworkKnowsCheck(t *testing.T) {
	n := newNode(t, nil)
	p := n.addPod("pod", "")
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
	for ifName, version := range map[string]string{"eth0": "0.3.1", "net1": "0.4.0", "net2": "1.0.0"} {
		conf, err := libcni.NetworkPluginConfFromBytes([]byte(strings.Replace(n.scripted(`,"name":"logged-net"`), "1.0.0", version, 1)))
		n.must(err)
		_, err = cni.AddNetwork(context.Background(), conf, &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName})
		n.must(err)
	}
	n.succeed("CHECK", p)
	var got []string
	for _, c := range n.calls("CHECK") {
		got = append(got, c.IfName)
	}
	if want := []string{"net1", "net2"}; !slices.Equal(got, want) {
		t.Errorf("checked %q, want %q", got, want)
	}
}

// TestPodsOfMultusWithoutRecords proves that CHECK of a sandbox without recorded
// results fails, and that GC leaves the sandbox to its DEL.
func TestPodsOfMultusWithoutRecords(t *testing.T) {
	n := warmMultus(t)
	before := n.state()
	p := n.attachAsMultus("pod")
	n.must(os.RemoveAll(n.path("state/results")))
	n.refuse("CHECK", p, 999, "cluster-net", "default/pod")
	n.collect()
	n.interfaceOf(p, "eth0")
	n.interfaceOf(p, "data")
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
	none := n.addPod("none", "")
	n.refuse("CHECK", none, 3, "not attached", "default/none")
	n.collect(none)
	n.succeed("DEL", none)
}

func TestPodsOfMultusAreCollected(t *testing.T) {
	n := warmMultus(t)
	keep := n.attachAsMultus("keep")
	between := n.state()
	stale := n.attachAsMultus("stale")
	n.must(stale.ns.Delete())
	log := n.path("calls")
	n.define("logged", "", `{"cniVersion":"1.1.0","name":"logged-net","type":"scripted","log":"`+log+`"}`)
	own := n.addPod("own", "logged")
	n.succeed("ADD", own)
	n.collect(keep, own)
	n.expect(log, attachment(own, "net1")) // all attachments are known, so GC is passed on
	n.succeed("DEL", own)
	n.must(own.ns.Delete())
	n.settles(func() string { return withoutGone(between.Diff(n.state())) })
	n.succeed("CHECK", keep)
	n.succeed("DEL", keep)
}

func TestAHostileFileOfMultus(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	p := n.addPod("pod", "")
	for _, text := range []string{`[null]`, `null`, `{}`, `[{"Bytes":"e30="}]`, `[{"Bytes":"bnVsbA=="}]`, `[{"Bytes":7}]`, strings.Repeat("[", 100000)} {
		n.file("state/"+p.ID, text)
		n.succeed("DEL", p)
		if exists(n.path("state/" + p.ID)) {
			t.Errorf("%.20s is still there", text)
		}
	}
	path := base64.StdEncoding.EncodeToString([]byte(`{"name":"x","cniVersion":"1.0.0","type":"../../bin/sh"}`))
	list, err := json.Marshal([]map[string]string{{"Bytes": path}})
	n.must(err)
	n.file("state/"+p.ID, string(list))
	if res := n.succeed("DEL", p); !strings.Contains(string(res.Stderr), "../../bin/sh") {
		t.Errorf("the log does not name the ignored delegate: %s", res.Stderr)
	}
}

// deleteAsMultus does what DEL of Multus does with its file and libcni's records in
// dir: the DEL of every delegate, in reverse order.
func (n *node) deleteAsMultus(dir string, p *pod) {
	n.t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, p.ID))
	n.must(err)
	var delegates []struct {
		ConfList     struct{ Plugins []json.RawMessage }
		IfName       string   `json:"ifnameRequest"`
		DeviceID     string   `json:"deviceID"`
		ResourceName string   `json:"resourceName"`
		MAC          string   `json:"macRequest"`
		GUID         string   `json:"infinibandGUIDRequest"`
		IPs          []string `json:"ipRequest"`
		Bytes        []byte
	}
	n.must(json.Unmarshal(raw, &delegates))
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, dir, nil)
	for i := len(delegates) - 1; i >= 0; i-- {
		d := delegates[i]
		if len(d.ConfList.Plugins) == 0 {
			n.t.Fatalf("delegate %d is not a list: %s", i, raw)
		}
		list, err := libcni.NetworkConfFromBytes(d.Bytes)
		n.must(err)
		rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: d.IfName, CapabilityArgs: map[string]any{}}
		for key, value := range map[string]string{"deviceID": d.DeviceID, "mac": d.MAC, "infinibandGUID": d.GUID} {
			if value != "" {
				rt.CapabilityArgs[key] = value
			}
		}
		if len(d.IPs) > 0 {
			rt.CapabilityArgs["ips"] = d.IPs
		}
		if cached, err := cni.GetNetworkListCachedResult(list, rt); err != nil || cached == nil {
			n.t.Errorf("no record of %s: %v", d.IfName, err)
		}
		n.must(cni.DelNetworkList(context.Background(), list, rt))
	}
	n.must(os.Remove(filepath.Join(dir, p.ID)))
}

// TestSwitchingBack hands pods over to Multus, which releases them.
func TestSwitchingBack(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	for _, plugin := range []string{"bridge", "host-local", "host-device"} {
		n.must(os.Symlink(filepath.Join(pluginDir, plugin), n.path("opt/"+plugin)))
	}
	n.rt = n.installedRuntime()
	p, _ := n.twoDevicePod("app")
	before := n.state()
	n.succeed("ADD", p)
	to := n.path("multus")
	if out, err := n.install("uninstall", "--to-multus", to); err != nil || !strings.Contains(out, "handed over "+p.ID+"@eth0") {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	if exists(n.path("opt/manifold")) || exists(n.path("net.d/00-manifold.conflist")) {
		t.Error("Manifold is still installed")
	}
	n.deleteAsMultus(to, p)
	n.unchanged(before)
}

// TestSwitchingPage runs the commands of docs/switching.md in order, in the node's
// directories instead of the standard ones. A pod of Multus is deleted after the
// switch, and a pod of Manifold after the switch back.
func TestSwitchingPage(t *testing.T) {
	blocks, err := harness.Commands("switching.md")
	if err != nil || len(blocks) != 4 {
		t.Fatalf("%d blocks of commands, %v", len(blocks), err)
	}
	n := warmMultus(t)
	old := n.attachAsMultus("old")
	n.must(os.MkdirAll(n.path("opt"), 0o755))
	for _, plugin := range []string{"bridge", "host-local"} {
		n.must(os.Symlink(filepath.Join(pluginDir, plugin), n.path("opt/"+plugin)))
	}
	n.file("net.d/00-multus.conf", `{"cniVersion":"1.0.0","name":"multus-cni-network","type":"multus","clusterNetwork":"cluster-net",
		"confDir":"`+n.path("net.d")+`","cniDir":"`+n.path("state")+`","binDir":"`+n.path("opt")+`","kubeconfig":"`+n.path("kubeconfig")+`"}`)
	run := func(i int) {
		t.Helper()
		commands := strings.NewReplacer(
			"manifold-agent install", "manifold-agent install --cni-bin-dir "+n.path("opt")+" --cni-conf-dir "+n.path("net.d"),
			"manifold-agent uninstall", "manifold-agent uninstall --cni-bin-dir "+n.path("opt")+" --cni-conf-dir "+n.path("net.d"),
			"/etc/cni/net.d", n.path("net.d"), "/var/lib/cni/multus", n.path("state"),
		).Replace(blocks[i])
		cmd := exec.Command("sh", "-ec", commands)
		cmd.Dir, cmd.Env = n.dir, append(os.Environ(), "PATH="+programDir+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, commands, out)
		}
	}
	run(0)
	if !strings.Contains(n.read("agent.json"), n.path("kubeconfig")) {
		t.Errorf("the agent's configuration: %s", n.read("agent.json"))
	}
	n.agentConfig(map[string]any{"node": "node1", "podManifests": n.path("pods"), "snapshot": "-", "podResources": "-", "podsAPI": "-"})
	run(1)
	run(2)
	if exists(n.path("net.d/00-multus.conf")) {
		t.Error("Multus's file is still there")
	}
	n.rt = n.installedRuntime()
	n.succeed("CHECK", old)
	n.succeed("DEL", old)
	before := n.state()
	own := n.addPod("own", "")
	n.succeed("ADD", own)
	run(3)
	n.deleteAsMultus(n.path("state"), own)
	handed, err := filepath.Glob(n.path("state/*.handed-*"))
	if err != nil || len(handed) != 1 {
		t.Fatalf("journals set aside: %q %v", handed, err)
	}
	n.must(os.Remove(handed[0]))
	n.must(own.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}

// TestSwitchingPageOfTheThickPlugin proves that the only problem of its converted
// stock file is the missing default network, and that installing it solves this.
func TestSwitchingPageOfTheThickPlugin(t *testing.T) {
	n := warmMultus(t)
	config := func(args ...string) (string, string, error) {
		cmd := exec.Command(filepath.Join(programDir, "manifold-agent"), append([]string{"config"}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		return string(out), stderr.String(), err
	}
	n.file("daemon-config.json", `{"chrootDir":"/hostroot","cniVersion":"0.3.1","logLevel":"verbose","logToStderr":true,"cniConfigDir":"/host/etc/cni/net.d",
		"multusAutoconfigDir":"/host/etc/cni/net.d","multusConfigFile":"auto","socketDir":"/host/run/multus/"}`)
	out, said, err := config("convert", n.path("daemon-config.json"))
	if err != nil || !strings.Contains(said, "clusterNetwork: not set;") || !strings.Contains(said, "until then 'config validate' reports") {
		t.Fatalf("convert: %v\n%s", err, said)
	}
	n.file("manifold.conflist", out)
	out, _, err = config("validate", n.path("manifold.conflist"))
	if err == nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, "neither") {
		t.Errorf("validate: %v, %s", err, out)
	}
	if out, err := n.install("install", "--config", n.path("manifold.conflist"), "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	installed := []string{"validate", "--agent-config", n.path("net.d/manifold.d/agent.json"), n.path("net.d/00-manifold.conflist")}
	if out, said, err := config(installed...); err != nil {
		t.Errorf("validate of the installed files: %v\n%s%s", err, out, said)
	}
	n.file("agent.json", "{\n\"socket\": 7,\n\"podManifests\": \"/absent\"}")
	out, said, err = config("validate", "--agent-config", n.path("agent.json"))
	want := n.path("agent.json") + ":2: error: socket: a number is given; it takes a string\n" +
		n.path("agent.json") + ":3: warning: podManifests: /absent does not exist on this machine\n"
	if err == nil || out != want || !strings.HasSuffix(said, ": 1 error\n") {
		t.Errorf("validate of a broken file: %v\n%s%s, want\n%s", err, out, said, want)
	}
}

// read returns the content of a file.
func (n *node) read(name string) string {
	n.t.Helper()
	raw, err := os.ReadFile(n.path(name))
	n.must(err)
	return string(raw)
}
