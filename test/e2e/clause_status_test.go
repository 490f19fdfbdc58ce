package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// TestClauseStatus proves the clauses of network-status (multi-network
// specification, section 5) and of device-information files, each under its id.
func TestClauseStatus(t *testing.T) {
	t.Run("MN-5.1-source", statusSource)
	t.Run("MN-5.2-default", statusDefault)
	t.Run("MN-5.3-name", statusName)
	t.Run("MN-5.3-ips", statusIPs)
	t.Run("MN-5.3-legacy", statusLegacy)
	t.Run("MN-5.3-dns", statusDNS)
	t.Run("MN-5.3-gateway", statusGateway)
	t.Run("MN-5.3-device-info", statusDeviceInfo)
	t.Run("MN-5-minimal", statusMinimal)
	t.Run("DI-4.1-dp-file", devinfoFromPlugin)
	t.Run("DI-4.2-cni-file", devinfoFilePerAttachment)
	t.Run("DI-5-capability", devinfoCapability)
	t.Run("DI-6-status", devinfoInStatus)
}

// statusNode is a node whose agent publishes network-status to an API server.
type statusNode struct {
	*kubeletNode
	api *kubetest.Server
}

func newStatusNode(t *testing.T) *statusNode {
	t.Helper()
	n, api := newAPINode(t)
	n.serve()
	return &statusNode{n, api}
}

// attached adds a pod and returns its network-status.
func (n *statusNode) attached(name, networks string, containers ...corev1.Container) (*pod, []netattach.Status) {
	n.t.Helper()
	p := n.apiPod(n.api, name, networks, containers...)
	n.succeed("ADD", p)
	return p, n.published(name)
}

// published returns a pod's network-status.
func (n *statusNode) published(name string) []netattach.Status {
	n.t.Helper()
	var list []netattach.Status
	n.must(json.Unmarshal([]byte(n.api.Pod("default", name).Annotations[netattach.StatusAnnotation]), &list))
	return list
}

// entry attaches a pod to one network and returns the status entry of that network.
func (n *statusNode) entry(name, networks string, containers ...corev1.Container) netattach.Status {
	n.t.Helper()
	p, list := n.attached(name, networks, containers...)
	n.succeed("DEL", p)
	if len(list) != 2 {
		n.t.Fatalf("%s: network-status has %d entries, want 2: %+v", name, len(list), list)
	}
	return list[1]
}

// answers returns the configuration of a network that creates an interface with
// addresses, and whose last plugin prints result.
func answers(version, result string, addresses ...string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"plugins":[{"type":"scripted","mac":"02:00:00:00:05:01","addresses":["%s"]},
		{"type":"scripted","script":{"ADD":{"stdout":%q},"DEL":{"stdout":"\n"}}}]}`, version, strings.Join(addresses, `","`), result)
}

func statusSource(t *testing.T) {
	n := newStatusNode(t)
	const host, own, other = `{"name":"host0","mac":"02:00:00:00:05:aa"}`, `{"name":"net1","mac":"02:00:00:00:05:01","sandbox":"/n"}`, `{"name":"lo","mac":"00:00:00:00:00:00","sandbox":"/n"}`
	for name, tc := range map[string]struct{ interfaces, ifName, mac string }{
		"after-the-host": {host + "," + own + "," + other, "net1", "02:00:00:00:05:01"},
		"another-first":  {other + "," + own, "lo", "00:00:00:00:00:00"},
	} {
		definition(n.api, name, "", answers("1.0.0", `{"cniVersion":"1.0.0","interfaces":[`+tc.interfaces+`]}`, "10.51.0.2/24"))
		if s := n.entry(name, name); s.Interface != tc.ifName || s.MAC != tc.mac {
			t.Errorf("%s: entry %+v, want interface %s with %s", name, s, tc.ifName, tc.mac)
		}
	}
	// A bridge's result lists the bridge and the host's end before the pod's.
	p, list := n.attached("bridged", "")
	if got := list[0]; got.Interface != "eth0" || got.MAC != n.interfaceOf(p, "eth0").HardwareAddr.String() {
		t.Errorf("default network: %+v", got)
	}
	n.succeed("DEL", p)
}

func statusDefault(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
	p, list := n.attached("app", "plain,plain")
	var defaults []string
	for _, s := range list {
		if s.Default {
			defaults = append(defaults, s.Name+" "+s.Interface)
		}
	}
	if fmt.Sprint(defaults) != "[cluster-net eth0]" || len(list) != 3 {
		t.Errorf("default entries %v of %+v", defaults, list)
	}
	n.succeed("DEL", p)
}

func statusName(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "plain", "", strings.Replace(n.bridge("plain", "10.89.0.0/16"), `"type"`, `"name":"another-name","type"`, 1))
	p, list := n.attached("app", "plain")
	if got := list[0].Name + " " + list[1].Name; got != "cluster-net default/plain" {
		t.Errorf("names %s", got)
	}
	n.succeed("DEL", p)
}

func statusIPs(t *testing.T) {
	n := newStatusNode(t)
	const interfaces = `[{"name":"host0"},{"name":"net1","sandbox":"/n"},{"name":"lo","sandbox":"/n"}]`
	for name, tc := range map[string]struct {
		interfaces, ips string
		want            []string
	}{
		"first-sandbox": {interfaces, `{"interface":0,"address":"10.52.0.1/24"},{"interface":1,"address":"10.52.0.2/24"},{"interface":2,"address":"10.52.0.3/24"},{"address":"10.52.0.4/24"}`,
			[]string{"10.52.0.2"}},
		"no-sandbox": {`[{"name":"host0"}]`, `{"interface":0,"address":"10.52.0.1/24"},{"address":"10.52.0.2/24"},{"address":"10.52.0.3/24"}`, []string{"10.52.0.2"}},
	} {
		definition(n.api, name, "", answers("1.0.0", `{"cniVersion":"1.0.0","interfaces":`+tc.interfaces+`,"ips":[`+tc.ips+`]}`, "10.52.0.2/24", "10.52.0.3/24"))
		if s := n.entry(name, name); !reflect.DeepEqual(s.IPs, tc.want) {
			t.Errorf("%s: addresses %v, want %v", name, s.IPs, tc.want)
		}
	}
}

func statusLegacy(t *testing.T) {
	n := newStatusNode(t)
	for _, version := range []string{"0.1.0", "0.2.0"} {
		name := "old-" + strings.ReplaceAll(version, ".", "-")
		definition(n.api, name, "", `{"cniVersion":"`+version+`","type":"scripted","addresses":["10.53.0.2/24","fd53::2/64"]}`)
		s := n.entry(name, name+"@old0")
		if want := []string{"10.53.0.2", "fd53::2"}; s.Interface != "old0" || !reflect.DeepEqual(s.IPs, want) {
			t.Errorf("CNI %s: entry %+v, want interface old0 with %v", version, s, want)
		}
	}
}

func statusDNS(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "named", "", answers("1.0.0", `{"cniVersion":"1.0.0","dns":{"nameservers":["10.54.0.53"],"domain":"lab.example","search":["a.example","b.example"]}}`, "10.54.0.2/24"))
	got := n.entry("app", "named").DNS
	if fmt.Sprintf("%v %s %v", got.Nameservers, got.Domain, got.Search) != "[10.54.0.53] lab.example [a.example b.example]" {
		t.Errorf("dns %+v", got)
	}
}

func statusGateway(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "scr", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.55.0.2/24"]}`)
	definition(n.api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
	p, list := n.attached("app", `[{"name":"plain"},{"name":"scr","default-route":["10.55.0.1"]}]`)
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprint(s.Name, s.DefaultRoute))
	}
	if want := "[cluster-net[] default/plain[] default/scr[10.55.0.1]]"; fmt.Sprint(got) != want {
		t.Errorf("default routes %v, want %s", got, want)
	}
	n.succeed("DEL", p)
}

// silent is the configuration of a network whose delegate does nothing and prints
// no result.
const silent = `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"stdout":"\n"},"DEL":{"stdout":"\n"}}}`

func statusMinimal(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "silent", "", silent)
	want := netattach.Status{Name: "default/silent", Interface: "net1"}
	if got := n.entry("app", "silent"); !reflect.DeepEqual(got, want) {
		t.Errorf("entry %+v, want %+v", got, want)
	}
}

// describe writes the device-information file of a device plugin and returns its
// content.
func (n *node) describe(resource, id, socket string) string {
	n.t.Helper()
	content := `{"type":"vhost-user","version":"1.1.0","vhost-user":{"mode":"client","path":"` + socket + `"},"vendor.example/more":{"kept":true}}`
	name, err := netattach.DPFileName(resource, id)
	n.must(err)
	n.file("devinfo/dp/"+name, content)
	return content
}

// sameJSON compares two documents by value.
func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// cniFiles returns the device-information files of attachments, by name.
func (n *node) cniFiles() map[string]string {
	n.t.Helper()
	paths, err := filepath.Glob(n.path("devinfo/cni/*"))
	n.must(err)
	out := map[string]string{}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		n.must(err)
		out[filepath.Base(path)] = string(content)
	}
	return out
}

func statusDeviceInfo(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
	definition(n.api, "nic-a", nicA, hostDevice)
	ids := n.devices("nic0", "nic1")
	first, second := n.describe(nicA, ids[0], "/run/one"), n.describe(nicA, ids[1], "/run/two")
	p, list := n.attached("app", "plain,nic-a,nic-a", container("c1", 2))
	for i, want := range []string{"", "", first, second} {
		if got := string(list[i].DeviceInfo); got != want && !sameJSON(got, want) {
			t.Errorf("%s: device-info %s, want %s", list[i].Interface, got, want)
		}
	}
	n.succeed("DEL", p)
}

func devinfoFromPlugin(t *testing.T) {
	n := newStatusNode(t)
	ids := n.devices("nic0", "nic1")
	definition(n.api, "nic-a", nicA, hostDevice)
	// The file name as the specification defines it, not as the code builds it.
	content := `{"type":"memif","version":"1.1.0","memif":{"role":"master","path":"/run/memif","mode":"ethernet"}}`
	n.file("devinfo/dp/test.example-nic-a-"+ids[0]+"-device.json", content)
	if got := n.entry("app", "nic-a", container("c1", 1)); !sameJSON(string(got.DeviceInfo), content) {
		t.Errorf("device-info %s, want %s", got.DeviceInfo, content)
	}
	// A truncated file is ignored, not published.
	n.file("devinfo/dp/test.example-nic-a-"+ids[1]+"-device.json", content[:20])
	if got := n.entry("again", "nic-a", container("c1", 1)); got.DeviceInfo != nil {
		t.Errorf("device-info %s from a truncated file", got.DeviceInfo)
	}
	t.Run("of its resource", devinfoOfItsResource)
}

// devinfoOfItsResource checks that, if two resources advertise one device and both
// plugins describe it, each network gets the description by its own resource's
// plugin.
func devinfoOfItsResource(t *testing.T) {
	n := newStatusNode(t)
	vf := n.userspaceVFs(1)[0]
	for _, resource := range []string{nicA, nicB} {
		n.must(n.kubelet.SetDevices(resource, n.advertised(vf)...))
		definition(n.api, strings.TrimPrefix(resource, "test.example/"), resource, silent)
	}
	want := map[string]string{"nic-a": n.describe(nicA, vf, "/run/of-a"), "nic-b": n.describe(nicB, vf, "/run/of-b")}
	both := []corev1.Container{containerOf(nicA, "c1", 1), containerOf(nicB, "c2", 1)}
	for network, content := range want {
		if got := n.entry("on-"+network, network, both...); !sameJSON(string(got.DeviceInfo), content) {
			t.Errorf("%s: device-info %s, want %s", network, got.DeviceInfo, content)
		}
		n.must(n.kubelet.DeletePod(n.kubelet.Pods()[0].UID))
	}
}

// infoFile returns a network on a device whose delegate may write a
// device-information file.
func (n *node) infoFile(device, more string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","type":"scripted","device":%q,"capabilities":{"CNIDeviceInfoFile":true},"log":%q%s}`, device, n.path("calls"), more)
}

func devinfoFilePerAttachment(t *testing.T) {
	n := newStatusNode(t)
	ids := n.devices("nic0", "nic1")
	definition(n.api, "moved", nicA, strings.Replace(n.logged(), `"log"`, `"capabilities":{"CNIDeviceInfoFile":true},"log"`, 1))
	contents := []string{n.describe(nicA, ids[0], "/run/one"), n.describe(nicA, ids[1], "/run/two")}
	if exists(n.path("devinfo/cni")) {
		t.Fatal("the directory exists already")
	}
	p, _ := n.attached("app", "moved,moved", container("c1", 2))
	other, _ := n.attached("other", "")
	files := n.cniFiles()
	if len(files) != 2 {
		t.Fatalf("files %v, want one for each attachment", files)
	}
	for i, call := range n.calls("ADD") {
		name := filepath.Base(call.runtimeConfig("CNIDeviceInfoFile"))
		if !sameJSON(files[name], contents[i]) {
			t.Errorf("%s: file %s holds %q, want %s", call.IfName, name, files[name], contents[i])
		}
	}
	n.succeed("DEL", other)
	if len(n.cniFiles()) != 2 {
		t.Error("DEL of another pod removed the files")
	}
	n.succeed("DEL", p)
	if left := n.cniFiles(); len(left) != 0 {
		t.Errorf("left after DEL: %v", left)
	}
}

func devinfoCapability(t *testing.T) {
	n := newStatusNode(t)
	n.devices("nic0", "nic1")
	definition(n.api, "with", nicA, n.infoFile("nic0", ""))
	definition(n.api, "without", nicA, strings.Replace(n.infoFile("nic1", ""), `"CNIDeviceInfoFile":true`, `"deviceID":true`, 1))
	p, _ := n.attached("app", "with,without", container("c1", 2))
	calls := n.calls("ADD")
	if path := calls[0].runtimeConfig("CNIDeviceInfoFile"); filepath.Dir(path) != n.path("devinfo/cni") {
		t.Errorf("declared, yet given %q", path)
	}
	if path := calls[1].runtimeConfig("CNIDeviceInfoFile"); path != "" {
		t.Errorf("not declared, yet given %q", path)
	}
	n.succeed("DEL", p)
}

func devinfoInStatus(t *testing.T) {
	n := newStatusNode(t)
	ids := n.devices("nic0")
	before := n.describe(nicA, ids[0], "/run/one")
	gate := n.path("gate")
	definition(n.api, "writer", nicA, n.infoFile("nic0", `,"script":{"ADD":{"gate":"`+gate+`"}}`))
	p := n.apiPod(n.api, "app", "writer", container("c1", 1))
	done := make(chan struct{})
	go func() { defer close(done); n.succeed("ADD", p) }()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	file := n.calls("ADD")[0].runtimeConfig("CNIDeviceInfoFile")
	content, err := os.ReadFile(file)
	n.must(err)
	if !sameJSON(string(content), before) {
		t.Errorf("the delegate found %s, want the device plugin's %s", content, before)
	}
	after := `{"type":"vdpa","version":"1.1.0","vdpa":{"parent-device":"vdpa0","driver":"vhost","path":"/dev/vhost-vdpa-0"}}`
	n.must(os.WriteFile(file, []byte(after), 0o600))
	n.file("gate", "")
	<-done
	if got := n.published("app")[1]; !sameJSON(string(got.DeviceInfo), after) {
		t.Errorf("device-info %s, want what the delegate wrote: %s", got.DeviceInfo, after)
	}
	n.succeed("DEL", p)
	t.Run("PCI device without any file", devinfoOfPCI)
	t.Run("chain", devinfoOfChain)
}

// devinfoOfChain checks that the description of the device survives later plugins
// of the chain, which know nothing about it.
func devinfoOfChain(t *testing.T) {
	n := newStatusNode(t)
	id := n.devices("nic1")[0]
	name, err := netattach.DPFileName(nicA, id)
	n.must(err)
	content := `{"type":"pci","version":"1.1.0","pci":{"pci-address":"` + userspacePF + `","rdma-device":"mlx5_0"}}`
	for network, capabilities := range map[string]string{"file": `{"CNIDeviceInfoFile":true,"deviceID":true}`, "none": `{"deviceID":true}`} {
		n.file("devinfo/dp/"+name, content)
		definition(n.api, network, nicA, `{"cniVersion":"1.0.0","plugins":[{"type":"host-device","capabilities":`+capabilities+`},
			{"type":"tuning","mac":"02:00:00:00:05:07"}]}`)
		got := n.entry("pod-"+network, network, container("c1", 1))
		if !sameJSON(string(got.DeviceInfo), content) || got.MAC != "02:00:00:00:05:07" {
			t.Errorf("%s: device-info %s of %s, want %s", capabilities, got.DeviceInfo, got.MAC, content)
		}
		n.must(n.kubelet.DeletePod(n.kubelet.Pods()[0].UID))
		if left := n.cniFiles(); len(left) != 0 {
			t.Errorf("left after DEL: %v", left)
		}
	}
}

func devinfoOfPCI(t *testing.T) {
	n := newStatusNode(t)
	vf := n.userspaceVFs(1)[0]
	n.must(n.kubelet.SetDevices(nicB, n.advertised(vf)...))
	definition(n.api, "dpdk", nicB, silent)
	got := n.entry("dpdk-app", "dpdk", containerOf(nicB, "c1", 1))
	want := `{"type":"pci","version":"1.1.0","pci":{"pci-address":"` + vf + `","pf-pci-address":"` + userspacePF + `"}}`
	if !sameJSON(string(got.DeviceInfo), want) {
		t.Errorf("device-info %s, want %s", got.DeviceInfo, want)
	}
}

// userspacePF is the physical function of the VFs of userspaceVFs.
const userspacePF = "0000:5e:00.0"

// userspaceVFs adds VFs that are bound to vfio-pci to the host and returns their
// addresses.
func (n *node) userspaceVFs(count int) []string {
	n.t.Helper()
	tree := sriovtest.New("/run/host") // the harness mounts its sys/ as the host's
	tree.AddPF(sriovtest.PF{Address: userspacePF, Driver: "ice", TotalVFs: count})
	var out []string
	for i := range count {
		addr := fmt.Sprintf("0000:5e:%02x.%d", 1+i/8, i%8)
		tree.AddVF(sriovtest.VF{PF: userspacePF, Index: i, Address: addr, Driver: "vfio-pci", IOMMUGroup: fmt.Sprint(100 + i)})
		out = append(out, addr)
	}
	n.must(tree.Err())
	return out
}
