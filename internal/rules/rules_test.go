package rules

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
)

const vfs = "vendor.example/vfs"

// definition returns a definition of namespace shop; resource may be empty.
func definition(name, resource, config string) *netattach.Definition {
	def := &netattach.Definition{Spec: netattach.DefinitionSpec{Config: config}}
	def.Namespace, def.Name = "shop", name
	if resource != "" {
		def.Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
	}
	return def
}

// texts returns findings as text, one line each.
func texts(found []Finding) []string {
	var out []string
	for _, f := range found {
		out = append(out, fmt.Sprintf("%s %s: %s", f.Severity, f.Field, f))
	}
	return out
}

// hasAll reports whether line contains every one of words.
func hasAll(line string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
}

// expect compares findings with what is expected: for each finding the words that its
// line contains.
func expect(t *testing.T, found []Finding, want ...[]string) {
	t.Helper()
	lines := texts(found)
	if len(lines) != len(want) {
		t.Fatalf("%d findings, want %d:\n%s", len(lines), len(want), strings.Join(lines, "\n"))
	}
	for i, words := range want {
		if !hasAll(lines[i], words) {
			t.Errorf("finding %q does not say %q", lines[i], words)
		}
	}
}

func TestDefinition(t *testing.T) {
	const at = "spec.config: "
	for name, tc := range map[string]struct {
		resource, config string
		want             [][]string
	}{
		"good":               {vfs, `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true}}`, nil},
		"empty":              {"", " ", [][]string{{"warning", at, `named "net"`}}},
		"not JSON":           {"", `{`, [][]string{{"error", at, "not JSON"}}},
		"path":               {"", `{"type":"../../bin/sh"}`, [][]string{{"error", at, "not the plain name of a program"}}},
		"IPAM path":          {"", `{"type":"bridge","ipam":{"type":"/bin/sh"}}`, [][]string{{"error", at, "ipam.type"}}},
		"no plugins":         {"", `{"plugins":[]}`, [][]string{{"error", at, "0 plugins"}}},
		"second has no type": {"", `{"plugins":[{"type":"bridge"},{}]}`, [][]string{{"error", at, "plugin 2: type"}}},
		"version":            {"", `{"cniVersion":"9.0.0","type":"bridge"}`, [][]string{{"error", at, "9.0.0"}}},
		"name":               {"", `{"name":"a b","type":"bridge"}`, [][]string{{"error", at, "a b"}}},
		"itself":             {"", `{"type":"manifold"}`, [][]string{{"error", at, "without end", "name another plugin"}}},
		"device beside it":   {vfs, `{"type":"host-device","pciBusID":"0000:21:10.0"}`, [][]string{{"error", at, "0000:21:10.0", "drop deviceID"}}},
		"no resource":        {"", `{"type":"sriov"}`, [][]string{{"warning", at, "plugin sriov needs a device"}}},
		"no use for it":      {vfs, `{"plugins":[{"type":"bridge"},{"type":"tuning"}]}`, [][]string{{"warning", at, "none of its plugins takes a device"}}},
		"capability alone":   {"", `{"type":"x","capabilities":{"deviceID":true}}`, [][]string{{"warning", at, "capability deviceID"}}},
		"misspelt":           {"", `{"type":"x","capabilities":{"IPs":true,"portmappings":false}}`, [][]string{{"warning", at, `"IPs"`, "write ips"}}},
		"resource":           {"vfs", `{"type":"host-device"}`, [][]string{{"error", "metadata.annotations[k8s.v1.cni.cncf.io/resourceName]", "domain/name"}}},
		"Kubernetes's":       {"kubernetes.io/vfs", `{"type":"host-device"}`, [][]string{{"error", "other than kubernetes.io"}}},
		"a quota's":          {"requests.vendor.example/vfs", `{"type":"host-device"}`, [][]string{{"error", "metadata.annotations[k8s.v1.cni.cncf.io/resourceName]", "begins with requests."}}},
		"resource's letters": {"vendor.example/v f", `{"type":"host-device"}`, [][]string{{"error", "v f"}}},
		"wrong type":         {"", `{"type":"bridge","mtu":"big"}`, [][]string{{"error", at, "mtu"}}},
	} {
		t.Run(name, func(t *testing.T) { expect(t, Definition(definition("net", tc.resource, tc.config)), tc.want...) })
	}
	selecting := definition("net", "", `{"type":"bridge"}`)
	for text, ok := range map[string]bool{"": true, "a=b": true, "a=b,c.example/d=e": true, "a": false, "a in (b)": false, "a b=c": false, "a==b c": false} {
		selecting.Annotations = map[string]string{netattach.NodeSelectorAnnotation: text}
		if found := Definition(selecting); (len(found) == 0) != ok {
			t.Errorf("node selector %q: %q", text, texts(found))
		}
	}
	expect(t, Definition(definition("Net", "", `{"type":"bridge"}`)), []string{"error", "metadata.name"})
}

// given are the definitions that the tests for pods use.
func given() map[planner.Ref]*netattach.Definition {
	out := map[planner.Ref]*netattach.Definition{}
	for _, def := range []*netattach.Definition{
		definition("vf", vfs, `{"type":"host-device"}`), definition("br", "", `{"type":"bridge","capabilities":{"ips":true}}`), definition("file", "", ""),
		definition("free", "", `{"type":"host-device"}`),
	} {
		out[planner.Ref{Namespace: def.Namespace, Name: def.Name}] = def
	}
	other := definition("far", "", `{"type":"bridge"}`)
	other.Namespace = "other"
	out[planner.Ref{Namespace: "other", Name: "far"}] = other
	return out
}

// newPod returns a pod of namespace shop with containers a and b, of which a requests
// limit devices.
func newPod(networks string, limit int64) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = "shop", "app"
	pod.Annotations = map[string]string{netattach.NetworksAnnotation: networks}
	pod.Spec.Containers = []corev1.Container{container("a", limit), container("b", 0)}
	return pod
}

// container returns a container that requests limit devices.
func container(name string, limit int64) corev1.Container {
	c := corev1.Container{Name: name}
	if limit > 0 {
		c.Resources.Limits = corev1.ResourceList{vfs: *resource.NewQuantity(limit, resource.DecimalSI)}
	}
	return c
}

func TestPod(t *testing.T) {
	const at = "metadata.annotations[k8s.v1.cni.cncf.io/networks]: "
	for name, tc := range map[string]struct {
		networks string
		limit    int64
		want     [][]string
	}{
		"none":               {"", 0, nil},
		"good":               {"vf, vf@data0", 2, nil},
		"too few":            {"vf, vf", 1, [][]string{{"error", "spec.containers: ", "2 attachments", "request 2 of " + vfs}}},
		"JSON":               {`[{"name":"vf"`, 1, [][]string{{"error", at}}},
		"interface":          {"br@a/b", 0, [][]string{{"error", at, "interface"}}},
		"interface twice":    {"br@x, br@x", 0, [][]string{{"error", at, "same interface name"}}},
		"runtime's":          {"br@eth0", 0, [][]string{{"error", at, "eth0"}}},
		"default route":      {`[{"name":"br","default-route":["10.0.0.1"]},{"name":"br","default-route":[]}]`, 0, [][]string{{"error", at, "default-route"}}},
		"absent":             {"nobody", 0, [][]string{{"warning", at, "definition shop/nobody is not there"}}},
		"absent, and more":   {"nobody, br@eth0", 0, [][]string{{"warning", at, "shop/nobody is not there"}, {"error", at, "eth0"}}},
		"absent, twice":      {"nobody, nobody, br@lo", 0, [][]string{{"warning", at, "nobody"}, {"warning", at, "nobody"}, {"error", at, "lo"}}},
		"absent, a device":   {`[{"name":"nobody","manifold.dev/container":"a"},{"name":"nobody","ips":["10.0.0.1"],"mac":"02:00:00:00:00:01"}]`, 0, [][]string{{"warning", at, "nobody"}, {"warning", at, "nobody"}}},
		"absent, devices":    {`[{"name":"nobody"},{"name":"free","deviceID":"0000:21:10.0"}]`, 0, [][]string{{"warning", at, "nobody"}, {"warning", at, "only the kubelet chooses"}}},
		"file":               {"file", 0, nil},
		"file, and more":     {"file, br@eth0", 0, [][]string{{"error", at, "eth0"}}},
		"capability":         {`[{"name":"vf","ips":["10.0.0.1"]}]`, 1, [][]string{{"error", at, `capability "ips"`}}},
		"reserved":           {`[{"name":"br","vlan":7}]`, 0, [][]string{{"warning", at, `"vlan" is reserved`}}},
		"pinned":             {`[{"name":"vf","deviceID":"0000:21:10.0"}]`, 1, [][]string{{"warning", at, "only the kubelet chooses"}}},
		"pinned, no devices": {`[{"name":"free","deviceID":"0000:21:10.0"}]`, 1, [][]string{{"warning", at, "only the kubelet chooses"}, {"error", at, "not among the pod's allocated devices"}}},
		"container":          {`[{"name":"vf","manifold.dev/container":"z"}]`, 1, [][]string{{"error", at, `container "z"`}}},
		"other container":    {`[{"name":"vf","manifold.dev/container":"b"}]`, 1, [][]string{{"error", "spec.containers: ", "container b"}}},
		"claim":              {`[{"name":"vf","manifold.dev/claim":"nic"}]`, 0, [][]string{{"error", at, `claim "nic"`}}},
		"no resource's":      {`[{"name":"br","manifold.dev/container":"a"}]`, 0, [][]string{{"error", at, "names container a", "no k8s.v1.cni.cncf.io/resourceName"}}},
		"another namespace":  {"other/far", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := New(nil, "is not there")
			if err != nil {
				t.Fatal(err)
			}
			expect(t, r.Pod(newPod(tc.networks, tc.limit), nil, given()), tc.want...)
		})
	}
}

func TestPodAsTheNodesAreConfigured(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		change func(*corev1.Pod)
		want   [][]string
	}{
		"isolated":        {`{"namespaceIsolation":true,"clusterNetwork":"elsewhere"}`, nil, [][]string{{"error", "namespaceIsolation is on"}}},
		"global":          {`{"namespaceIsolation":true,"globalNamespaces":"x,other","clusterNetwork":"/etc/cni/net.d"}`, nil, nil},
		"defaultNetworks": {`{"defaultNetworks":["shop/vf","on-disk"]}`, nil, [][]string{{"error", "spec.containers", "1 attachment asks"}}},
		"cluster's":       {`{"clusterNetwork":"vf","multusNamespace":"shop"}`, nil, [][]string{{"error", "spec.containers", "1 attachment asks"}}},
		"host network":    {`{}`, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, [][]string{{"warning", "spec.hostNetwork"}}},
		"container":       {`{}`, func(p *corev1.Pod) { p.Annotations[netattach.ContainerKey] = "z" }, [][]string{{"error", "[manifold.dev/container]"}}},
		"volume":          {`{}`, func(p *corev1.Pod) { p.Annotations[netattach.StatusVolumeAnnotation] = "etc/net" }, [][]string{{"error", "[manifold.dev/network-status-volume]"}}},
		"default by pod":  {`{}`, func(p *corev1.Pod) { p.Annotations[netattach.DefaultNetworkAnnotation] = "shop/br" }, nil},
		"two defaults":    {`{}`, func(p *corev1.Pod) { p.Annotations[netattach.DefaultNetworkAnnotation] = "shop/br,shop/br" }, [][]string{{"error", "[v1.multus-cni.io/default-network]: ", "must select one"}}},
		"two absent defaults": {`{}`, func(p *corev1.Pod) { p.Annotations[netattach.DefaultNetworkAnnotation] = "shop/no,shop/no" },
			[][]string{{"warning", "shop/no"}, {"warning", "shop/no"}, {"error", "[v1.multus-cni.io/default-network]: ", "must select one"}}},
		"ignored annotation": {`{"invalidAnnotation":"ignore"}`, func(p *corev1.Pod) { p.Annotations[netattach.NetworksAnnotation] = "[" }, [][]string{{"warning", "JSON"}}},
		"ignored default": {`{"invalidAnnotation":"ignore"}`, func(p *corev1.Pod) { p.Annotations[netattach.DefaultNetworkAnnotation] = "[" },
			[][]string{{"warning", "[v1.multus-cni.io/default-network]", "JSON"}}},
		"two defaults ignored": {`{"invalidAnnotation":"ignore"}`, func(p *corev1.Pod) { p.Annotations[netattach.DefaultNetworkAnnotation] = "shop/br,shop/br" },
			[][]string{{"warning", "must select one"}}},
		"files of the nodes": {`{"clusterNetwork":"/etc/cni/net.d","defaultNetworks":["/etc/cni/extra","other/nowhere"]}`, nil, nil},
		"claims may give it": {`{}`, func(p *corev1.Pod) {
			p.Annotations[netattach.NetworksAnnotation] = `[{"name":"vf","manifold.dev/claim":"nic","manifold.dev/request":"one"},{"name":"vf"},{"name":"free","manifold.dev/claim":"nic"}]`
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "nic"}}
		}, nil},
		"init container's is used again": {`{}`, func(p *corev1.Pod) {
			p.Annotations[netattach.NetworksAnnotation] = "vf,vf"
			p.Spec.InitContainers = []corev1.Container{container("i", 1)}
			p.Spec.Containers = []corev1.Container{container("a", 1)}
		}, [][]string{{"error", "spec.containers", "allocated 1"}}},
		"a sidecar's is not": {`{}`, func(p *corev1.Pod) {
			p.Annotations[netattach.NetworksAnnotation] = "vf,vf"
			p.Spec.InitContainers = []corev1.Container{container("i", 1)}
			p.Spec.InitContainers[0].RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
			p.Spec.Containers = []corev1.Container{container("a", 1)}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := New(json.RawMessage(tc.config), "is not there")
			if err != nil {
				t.Fatal(err)
			}
			pod := newPod("other/far", 0)
			if tc.change != nil {
				tc.change(pod)
			}
			expect(t, r.Pod(pod, nil, given()), tc.want...)
		})
	}
	for _, bad := range []string{`[]`, `null`, `{"namespaceIsolation":"yes"}`, `{"confDir":"relative"}`} {
		if _, err := New(json.RawMessage(bad), ""); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestSelectAndDemands(t *testing.T) {
	r, err := New(json.RawMessage(`{"clusterNetwork":"net","defaultNetworks":["vf"],"multusNamespace":"shop"}`), "")
	if err != nil {
		t.Fatal(err)
	}
	pod := newPod(`[{"name":"vf","interface":"x","manifold.dev/container":"b"},{"name":"br"}]`, 0)
	refs, err := r.Select(pod)
	if err != nil || fmt.Sprint(refs) != "[shop/net shop/vf shop/br]" {
		t.Errorf("definitions %v, %v", refs, err)
	}
	demands, err := r.Demands(pod, given())
	want := []planner.Demand{{Network: "shop/vf", Resource: vfs}, {Network: "shop/vf@x", Resource: vfs, Container: "b"}}
	if err != nil || !slices.Equal(demands, want) {
		t.Errorf("demands %+v, %v", demands, err)
	}
	pod.Annotations[netattach.NetworksAnnotation] = "["
	if _, err := r.Select(pod); err == nil {
		t.Error("an annotation that cannot be read is passed over")
	}
}

// FuzzPod: no pod and no definition makes the rules panic, and every finding tells its
// field and has a text.
func FuzzPod(f *testing.F) {
	f.Add(`[{"name":"vf","manifold.dev/container":"a"}]`, `{"spec":{"containers":[{"name":"a","resources":{"limits":{"vendor.example/vfs":"2"}}}]}}`, `{"type":"host-device"}`)
	f.Add("vf@x, other/far", `{"spec":{"resourceClaims":[{"name":"c"}],"hostNetwork":true}}`, `{"plugins":[{"type":"a","capabilities":{"IPS":true}}]}`)
	f.Add("[null]", `{"metadata":{"annotations":{"manifold.dev/container":"z"}}}`, `null`)
	f.Add("vf", `{"spec":{"initContainers":[{"name":"i","restartPolicy":"Always","resources":{"limits":{"vendor.example/vfs":"-9"}}}],"containers":[{}]}}`, ``)
	r, err := New(nil, "is not there")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, networks, podJSON, config string) {
		pod := &corev1.Pod{}
		if json.Unmarshal([]byte(podJSON), pod) != nil {
			return
		}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Namespace, pod.Annotations[netattach.NetworksAnnotation] = "shop", networks
		defs := given()
		defs[planner.Ref{Namespace: "shop", Name: "vf"}].Spec.Config = config
		found := r.Pod(pod, nil, defs)
		for _, def := range defs {
			found = append(found, Definition(def)...)
		}
		for _, one := range found {
			if one.Field == "" || one.Text == "" {
				t.Errorf("finding without place or text: %+v", one)
			}
		}
	})
}
