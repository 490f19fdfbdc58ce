package planner

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

const vfs = "vendor.example/vfs"

// world holds everything that a plan is made from.
type world struct {
	conf        map[string]any
	networks    string
	defaultNet  string // the default-network annotation
	containers  []string
	definitions map[string]string // config by name or namespace/name
	resources   map[string]string // resourceName, likewise
	devices     []podresources.Device
	claims      []podresources.PodClaim
	claimsErr   error
	runtime     map[string]any // runtimeConfig
}

// dev returns an allocated device.
func dev(container, id string) podresources.Device {
	return podresources.Device{Resource: vfs, ID: id, Containers: []string{container}, PluginIndex: -1, Source: podresources.FromBoth}
}

// shared returns a device that several containers hold.
func shared(id string, containers ...string) podresources.Device {
	d := dev("", id)
	d.Containers = containers
	return d
}

// ofB returns a device of another resource.
func ofB(container, id string) podresources.Device {
	d := dev(container, id)
	d.Resource = "another.example/vfs"
	return d
}

// plan makes the plan of a world.
func (w world) plan(t testing.TB) (*plan.Plan, error) {
	t.Helper()
	return w.planWith(t, w.sources())
}

// planWith makes the plan of a world from the given sources.
func (w world) planWith(t testing.TB, src Sources) (*plan.Plan, error) {
	t.Helper()
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": "manifold", "type": "manifold",
		"delegates": []any{map[string]any{"type": "bridge", "name": "cluster", "capabilities": map[string]bool{"portMappings": true}}},
	}
	for k, v := range w.conf {
		conf[k] = v
	}
	if w.runtime != nil {
		conf["runtimeConfig"] = w.runtime
	}
	raw, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	inv, err := netconf.FromRequest(plan.Request{Version: 1, PodNamespace: "shop", PodName: "app", PodUID: "u", ContainerID: "c0", NetNS: "/n", IfName: "eth0", Config: raw})
	if err != nil {
		t.Fatal(err)
	}
	pod := &Pod{Pod: podresources.Pod{Namespace: "shop", Name: "app", UID: "u"}, Annotations: map[string]string{netattach.NetworksAnnotation: w.networks}}
	if w.defaultNet != "" {
		pod.Annotations[netattach.DefaultNetworkAnnotation] = w.defaultNet
	}
	for _, c := range w.containers {
		pod.Containers = append(pod.Containers, podresources.Container{Name: c})
	}
	pod.Claims = w.claims
	sel, err := Select(inv, pod)
	if err != nil {
		return nil, err
	}
	return sel.Plan(src)
}

func (w world) sources() Sources {
	src := Sources{Definitions: map[Ref]*netattach.Definition{}, Allocation: &podresources.Allocation{Devices: w.devices, ClaimsErr: w.claimsErr}, Functions: map[string]*sriov.Function{}}
	for name, config := range w.definitions {
		ref := Ref{"shop", name}
		if ns, n, ok := strings.Cut(name, "/"); ok {
			ref = Ref{ns, n}
		}
		d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, Spec: netattach.DefinitionSpec{Config: config}}
		if r := w.resources[name]; r != "" {
			d.Annotations = map[string]string{netattach.ResourceNameAnnotation: r}
		}
		src.Definitions[ref] = d
	}
	return src
}

const hostDevice = `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true,"mac":true,"ips":true}}`

// summary formats a plan in a line: interface=network[:device].
func summary(p *plan.Plan) string {
	var out []string
	for _, a := range p.Attachments {
		s := a.IfName + "=" + a.Name
		if a.Device != nil {
			s += ":" + a.Device.ID
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestPlans(t *testing.T) {
	one := map[string]string{"fast": hostDevice, "plain": `{"type":"macvlan"}`}
	res := map[string]string{"fast": vfs}
	two := []podresources.Device{dev("tx", "0000:21:10.0"), dev("rx", "0000:21:10.4")}
	wantPlans(t, map[string]planned{
		"default alone": {world{}, "eth0=cluster"},
		"containers in the pod's order, not by address over the pod": {
			world{networks: "fast,fast", containers: []string{"rx", "tx"}, definitions: one, resources: res, devices: two},
			"eth0=cluster net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"ascending by number inside a container": {
			world{networks: "fast,fast", containers: []string{"rx"}, definitions: one, resources: res, devices: []podresources.Device{dev("rx", "0000:21:11.0"), dev("rx", "0000:21:10.4")}},
			"eth0=cluster net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:11.0"},
		"the container named": {
			world{networks: `[{"name":"fast"},{"name":"fast","manifold.dev/container":"rx"}]`, containers: []string{"rx", "tx"}, definitions: one, resources: res, devices: two},
			"eth0=cluster net1=shop/fast:0000:21:10.0 net2=shop/fast:0000:21:10.4"},
		"the container's own before one that another container holds too": {
			world{networks: `[{"name":"fast","manifold.dev/container":"tx"},{"name":"fast","manifold.dev/container":"rx"}]`, containers: []string{"rx", "tx"}, definitions: one, resources: res,
				devices: []podresources.Device{shared("0000:21:10.0", "rx", "tx"), dev("tx", "0000:21:10.4")}},
			"eth0=cluster net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"a shared one in its first container's place": {
			world{networks: "fast,fast", containers: []string{"rx", "tx"}, definitions: one, resources: res,
				devices: []podresources.Device{dev("tx", "0000:21:10.4"), shared("0000:21:11.0", "rx", "tx")}},
			"eth0=cluster net1=shop/fast:0000:21:11.0 net2=shop/fast:0000:21:10.4"},
		"one gives way to another that only its device suits": {
			world{networks: `[{"name":"fast","manifold.dev/container":"setup"},{"name":"fast","manifold.dev/container":"rx"}]`, containers: []string{"setup", "rx", "tx"}, definitions: one, resources: res,
				devices: []podresources.Device{shared("0000:21:10.0", "setup", "rx"), shared("0000:21:10.4", "setup", "tx")}},
			"eth0=cluster net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"the device pinned": {
			world{networks: `[{"name":"fast"},{"name":"fast","deviceID":"0000:21:10.4"}]`, containers: []string{"rx", "tx"}, definitions: one, resources: res, devices: two},
			"eth0=cluster net1=shop/fast:0000:21:10.0 net2=shop/fast:0000:21:10.4"},
		"one ledger over default and other networks": {
			world{defaultNet: "shop/fast", networks: "fast", containers: []string{"rx", "tx"}, definitions: one, resources: res, devices: two},
			"eth0=shop/fast:0000:21:10.4 net1=shop/fast:0000:21:10.0"},
		"names asked for are kept free": {
			world{networks: "plain@net2,plain,plain", definitions: one},
			"eth0=cluster net2=shop/plain net3=shop/plain net4=shop/plain"},
		"global namespace": {
			world{conf: map[string]any{"namespaceIsolation": true, "globalNamespaces": "a, infra"}, networks: "infra/net", definitions: map[string]string{"infra/net": `{"type":"ptp"}`}},
			"eth0=cluster net1=infra/net"},
		"global namespace where the list is empty, as for Multus": {
			world{conf: map[string]any{"namespaceIsolation": true, "globalNamespaces": ""}, networks: "default/net", definitions: map[string]string{"default/net": `{"type":"ptp"}`}},
			"eth0=cluster net1=default/net"},
	})
}

// These are the networks that the configuration attaches, and what it does with
// annotations that cannot be read.
func TestPlansOfConfiguredNetworks(t *testing.T) {
	one := map[string]string{"plain": `{"type":"macvlan"}`}
	wantPlans(t, map[string]planned{
		"default networks of the configuration": {
			world{conf: map[string]any{"defaultNetworks": []string{"extra"}}, networks: "plain", definitions: map[string]string{"kube-system/extra": `{"type":"ptp"}`, "plain": `{"type":"macvlan"}`}},
			"eth0=cluster net1=kube-system/extra net2=shop/plain"},
		"a default network of a namespace": {
			world{conf: map[string]any{"defaultNetworks": []string{"infra/extra@x0", "extra@x1"}, "namespaceIsolation": true}, definitions: map[string]string{"kube-system/extra": `{"type":"ptp"}`, "infra/extra": `{"type":"ptp"}`}},
			"eth0=cluster x0=infra/extra x1=kube-system/extra"},
		"a cluster network of a namespace": {
			world{conf: map[string]any{"clusterNetwork": "infra/net"}, definitions: map[string]string{"infra/net": `{"type":"ptp"}`}},
			"eth0=infra/net"},
		"invalid default network ignored": {
			world{conf: map[string]any{"invalidAnnotation": "ignore"}, defaultNet: "[null]", networks: "plain", definitions: one}, "eth0=cluster net1=shop/plain"},
		"both annotations ignored": {world{conf: map[string]any{"invalidAnnotation": "ignore"}, defaultNet: "a,b", networks: "[null]"}, "eth0=cluster"},
		"invalid interface of the default network ignored": {
			world{conf: map[string]any{"invalidAnnotation": "ignore"}, defaultNet: "shop/plain@net9", definitions: one}, "eth0=cluster"},
		"the default network's interface as the runtime names it": {world{defaultNet: "shop/plain@eth0", definitions: one}, "eth0=shop/plain"},
		"blank default network":                                   {world{defaultNet: " "}, "eth0=cluster"},
		"invalid annotation ignored":                              {world{conf: map[string]any{"invalidAnnotation": "ignore"}, networks: "[null]"}, "eth0=cluster"},
	})
}

// planned is a world and the summary of its plan.
type planned struct {
	w    world
	want string
}

func wantPlans(t *testing.T, cases map[string]planned) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := tc.w.plan(t)
			if err != nil {
				t.Fatal(err)
			}
			if got := summary(p); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestPluginOrder(t *testing.T) {
	first, second, other := dev("rx", "0000:21:10.6"), dev("rx", "0000:21:10.4"), ofB("rx", "0000:21:10.5")
	first.PluginIndex, second.PluginIndex = 0, 1 // the order of the other's plugin is unknown
	w := world{
		conf: map[string]any{"deviceOrder": "plugin"}, networks: "fast,fast", containers: []string{"rx"},
		definitions: map[string]string{"fast": hostDevice}, resources: map[string]string{"fast": vfs}, devices: []podresources.Device{second, other, first},
	}
	p, err := w.plan(t)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := summary(p), "eth0=cluster net1=shop/fast:0000:21:10.6 net2=shop/fast:0000:21:10.4"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRefusals(t *testing.T) {
	fast := map[string]string{"fast": hostDevice}
	res := map[string]string{"fast": vfs}
	large := `{"type":"ptp","x":"` + strings.Repeat("y", 200<<10) + `"}`
	chain := `{"plugins":[` + strings.Repeat(`{"type":"ptp"},`, 15) + `{"type":"ptp"}]}`
	for name, tc := range map[string]struct {
		w     world
		kind  cnierr.Kind
		parts []string
	}{
		"no device":   {world{networks: "fast", definitions: fast, resources: res}, cnierr.NoDevice, []string{vfs, "1 attachment asks", "allocated 0"}},
		"too few":     {world{networks: "fast,fast", definitions: fast, resources: res, devices: []podresources.Device{dev("rx", "a")}}, cnierr.NoDevice, []string{"2 attachments", "allocated 1"}},
		"another":     {world{networks: "fast", definitions: fast, resources: res, devices: []podresources.Device{ofB("rx", "b"), ofB("tx", "c")}}, cnierr.NoDevice, []string{"allocated 0 to the pod; it has 2 of another.example/vfs, which no network asks for; request 1"}},
		"container's": {world{networks: `[{"name":"fast","manifold.dev/container":"tx"}]`, definitions: fast, resources: res, devices: []podresources.Device{dev("rx", "a")}}, cnierr.NoDevice, []string{"container tx"}},
		"two resources": {world{networks: "fast,other", definitions: map[string]string{"fast": hostDevice, "other": hostDevice}, resources: map[string]string{"fast": vfs, "other": "another.example/vfs"},
			devices: []podresources.Device{dev("rx", "0000:21:10.4"), ofB("rx", "0000:21:10.4")}}, cnierr.DeviceConflict, []string{vfs, "another.example/vfs", "0000:21:10.4", "shop/fast"}},
		"pin not ours":  {world{networks: `[{"name":"fast","deviceID":"b"}]`, definitions: fast, resources: res, devices: []podresources.Device{dev("rx", "a")}}, cnierr.DeviceConflict, []string{"device b", "one of: a"}},
		"pin twice":     {world{networks: `[{"name":"fast","deviceID":"a"},{"name":"fast","deviceID":"a"}]`, definitions: fast, resources: res, devices: []podresources.Device{dev("rx", "a")}}, cnierr.DeviceConflict, []string{"already serves"}},
		"no definition": {world{networks: "nowhere"}, cnierr.DefinitionMissing, []string{"shop/nowhere"}},
		"empty config":  {world{networks: "e", definitions: map[string]string{"e": " "}}, cnierr.InvalidDefinition, []string{"no spec.config"}},
		"self":          {world{networks: "e", definitions: map[string]string{"e": `{"type":"manifold"}`}}, cnierr.InvalidDefinition, []string{"itself"}},
		"name":          {world{networks: "e", definitions: map[string]string{"e": `{"type":"a","name":"../x"}`}}, cnierr.InvalidDefinition, []string{"../x"}},
		"a container's of no resource": {world{networks: `[{"name":"p","manifold.dev/container":"rx"}]`, definitions: map[string]string{"p": `{"type":"ptp"}`}, devices: []podresources.Device{dev("rx", "a")}},
			cnierr.InvalidAnnotation, []string{"shop/p", "container rx", "no k8s.v1.cni.cncf.io/resourceName", "drop manifold.dev/container"}},
		"loopback": {world{networks: "fast@lo", definitions: fast}, cnierr.InterfaceConflict, []string{"shop/fast", "every pod already has the loopback interface lo", "another interface name"}},
		"the same twice": {world{networks: "fast@x0", conf: map[string]any{"defaultNetworks": []string{"fast@x0"}}, definitions: map[string]string{"fast": hostDevice, "kube-system/fast": hostDevice}},
			cnierr.InterfaceConflict, []string{"shop/fast", "interface x0", "the other is kube-system/fast"}},
		"nowhere by name": {world{conf: map[string]any{"confDir": "/nowhere", "defaultNetworks": []string{"extra"}}}, cnierr.TryAgain,
			[]string{`key "defaultNetworks"`, "definition kube-system/extra", "configuration in /nowhere", `name "extra"`, "create the definition"}},
		"nowhere by namespace": {world{conf: map[string]any{"defaultNetworks": []string{"infra/extra"}}}, cnierr.TryAgain, []string{`key "defaultNetworks"`, "definition infra/extra", "create the definition"}},
		"nowhere by path":      {world{conf: map[string]any{"defaultNetworks": []string{"/nowhere/x.conf"}}}, cnierr.TryAgain, []string{`key "defaultNetworks"`, "/nowhere/x.conf", "put a configuration there"}},
		"a pod names a path":   {world{networks: "/etc/cni/net.d"}, cnierr.InvalidAnnotation, nil},
		"no default":           {world{conf: map[string]any{"clusterNetwork": "/nowhere"}}, cnierr.TryAgain, []string{"/nowhere", "default network"}},
		"long name":            {world{networks: "e", definitions: map[string]string{"e": `{"type":"a","name":"` + strings.Repeat("n", 248) + `"}`}}, cnierr.InvalidDefinition, []string{"1 bytes too long", `"name"`}},
		"isolation":            {world{conf: map[string]any{"namespaceIsolation": true}, networks: "infra/net", definitions: map[string]string{"infra/net": `{"type":"ptp"}`}}, cnierr.Isolation, []string{"infra"}},
		"capability":           {world{networks: `[{"name":"p","ips":["10.0.0.1"]}]`, definitions: map[string]string{"p": `{"type":"ptp"}`}}, cnierr.InvalidAnnotation, []string{"ips", "capability"}},
		"same name":            {world{networks: "fast@eth0", definitions: fast}, cnierr.InterfaceConflict, []string{"eth0", "interface eth0 is that of the cluster default network"}},
		"annotation":           {world{networks: "[null]"}, cnierr.InvalidAnnotation, []string{"entry 1"}},
		"too large":            {world{networks: strings.Repeat("b,", 7) + "b", definitions: map[string]string{"b": large}}, cnierr.InvalidAnnotation, []string{"bytes in total"}},
		"large args":           {world{networks: `[{"name":"c","cni-args":{"x":"` + strings.Repeat("y", 100<<10) + `"}}]`, definitions: map[string]string{"c": chain}}, cnierr.InvalidAnnotation, []string{"cni-args"}},
		"two routes":           {world{defaultNet: `[{"name":"r","namespace":"shop","default-route":["10.0.0.1"]}]`, networks: `[{"name":"r","default-route":["10.0.0.2"]}]`, definitions: map[string]string{"r": `{"type":"ptp"}`}}, cnierr.InvalidAnnotation, []string{"default-route", "shop/r"}},
		"default's interface":  {world{defaultNet: "shop/p@net9", definitions: map[string]string{"p": `{"type":"ptp"}`}}, cnierr.InvalidAnnotation, []string{netattach.DefaultNetworkAnnotation, "asks for the interface net9", "names this one eth0"}},
		"two defaults":         {world{defaultNet: "a,b"}, cnierr.InvalidAnnotation, []string{"2 networks", "keep one", "k8s.v1.cni.cncf.io/networks"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := tc.w.plan(t)
			if err == nil {
				t.Fatalf("planned %s", summary(p))
			}
			if got := cnierr.KindOf(err); got != tc.kind {
				t.Errorf("kind %s, want %s", got, tc.kind)
			}
			for _, part := range append(tc.parts, "shop/app") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("lacks %q: %v", part, err)
				}
			}
		})
	}
}

// A key that has no effect causes a warning, in either annotation.
func TestWarningsAboutUnknownKeys(t *testing.T) {
	const entry = `[{"name":"p","namespace":"shop","colour":1,"x.y/z":1}]`
	one := map[string]string{"p": `{"type":"ptp"}`}
	for name, w := range map[string]world{"networks": {networks: entry, definitions: one}, "default network": {defaultNet: entry, definitions: one}} {
		p, err := w.plan(t)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(p.Warnings, "; "); got != `network shop/p: annotation key "colour" is reserved and has no effect` {
			t.Errorf("%s: warnings %q", name, got)
		}
	}
}

// A MAC that the PF is to keep is told apart from one that only the interface has.
func TestMACThatThePFKeeps(t *testing.T) {
	const setsVF, tunes = `{"type":"sriov","mac":"02:00:00:00:00:01","capabilities":{"mac":true}}`, `{"type":"tuning","capabilities":{"mac":true},"mac":"02:00:00:00:00:02"}`
	for name, tc := range map[string]struct{ plugins, asked, mac, onPF string }{
		"by the configuration": {setsVF, "", "02:00:00:00:00:01", "02:00:00:00:00:01"},
		"by the annotation":    {setsVF, `,"mac":"02:00:00:00:00:03"`, "02:00:00:00:00:03", "02:00:00:00:00:03"},
		"tuned afterwards":     {setsVF + "," + tunes, "", "02:00:00:00:00:02", "02:00:00:00:00:01"},
		"tuned alone":          {tunes, `,"mac":"02:00:00:00:00:03"`, "02:00:00:00:00:03", ""},
	} {
		w := world{
			networks:    `[{"name":"fast"` + tc.asked + `}]`,
			definitions: map[string]string{"fast": `{"cniVersion":"1.0.0","plugins":[` + tc.plugins + `]}`}, resources: map[string]string{"fast": vfs},
			devices: []podresources.Device{dev("rx", "0000:21:10.4")}, containers: []string{"rx"},
		}
		src := w.sources()
		src.Functions["0000:21:10.4"] = &sriov.Function{Address: "0000:21:10.4", PF: "0000:21:00.0", VFIndex: 2}
		p, err := w.planWith(t, src)
		if err != nil {
			t.Fatal(err)
		}
		want, onPF := p.Attachments[1].Want, ""
		if want.VF != nil {
			onPF = want.VF.MAC
		}
		if want.MAC != tc.mac || onPF != tc.onPF {
			t.Errorf("%s: the interface's %s, the PF's %s, want %s and %s", name, want.MAC, onPF, tc.mac, tc.onPF)
		}
	}
}

func TestRuntimeConfigAndWants(t *testing.T) {
	w := world{
		runtime:     map[string]any{"portMappings": []any{map[string]int{"hostPort": 80}}},
		networks:    `[{"name":"fast","mac":"02:00:00:00:00:01","ips":["10.0.0.9/24"],"default-route":["10.0.0.1"]},{"name":"plain"}]`,
		definitions: map[string]string{"fast": hostDevice, "plain": `{"type":"macvlan","mtu":1400}`}, resources: map[string]string{"fast": vfs},
		devices: []podresources.Device{dev("rx", "0000:21:10.4")}, containers: []string{"rx"},
	}
	p, err := w.plan(t)
	if err != nil {
		t.Fatal(err)
	}
	def, fast, plain := p.Attachments[0], p.Attachments[1], p.Attachments[2]
	if string(def.Capabilities["portMappings"]) == "" || len(plain.Capabilities) != 0 {
		t.Errorf("the runtime's own data is for the default network alone: %v %v", def.Capabilities, plain.Capabilities)
	}
	want := map[string]string{"mac": `"02:00:00:00:00:01"`, "ips": `["10.0.0.9/24"]`, "deviceID": `"0000:21:10.4"`}
	for k, v := range want {
		if string(fast.Capabilities[k]) != v {
			t.Errorf("capability %s is %s, want %s", k, fast.Capabilities[k], v)
		}
	}
	if got, want := fmt.Sprintf("%+v %+v", fast.Want, plain.Want), "{Verify:enforce MAC:02:00:00:00:00:01 MTU:0 IPs:[10.0.0.9/24] VF:<nil> Carrier:warn} {Verify:enforce MAC: MTU:1400 IPs:[] VF:<nil> Carrier:}"; got != want {
		t.Errorf("wants %s, want %s", got, want)
	}
	if got := []bool{def.DropDefaultRoute, fast.DropDefaultRoute, plain.DropDefaultRoute, fast.DefaultRoute != nil}; fmt.Sprint(got) != "[true false true true]" {
		t.Errorf("default route is not moved: %v", got)
	}
	if !strings.Contains(string(fast.Config), `"pciBusID":"0000:21:10.4"`) || !strings.Contains(string(fast.DeviceInfo), "0000:21:10.4") {
		t.Errorf("config %s, info %s", fast.Config, fast.DeviceInfo)
	}
}

// BenchmarkPlan plans the pods of a full node in turn: 250 pods on three of 1,000
// definitions each, with 64 devices to choose from.
func BenchmarkPlan(b *testing.B) {
	const definitions = 1000
	w := world{definitions: map[string]string{}, resources: map[string]string{}}
	for i := range definitions {
		w.definitions[fmt.Sprintf("net-%d", i)] = hostDevice
		w.resources[fmt.Sprintf("net-%d", i)] = vfs
	}
	for i := range 64 {
		w.devices = append(w.devices, dev("rx", fmt.Sprintf("0000:21:%02x.%d", i/8, i%8)))
	}
	src := w.sources()
	src.Parsed = &Parsed{}
	pods := make([]*Pod, 250)
	for i := range pods {
		pods[i] = &Pod{Pod: podresources.Pod{Namespace: "shop", Name: fmt.Sprintf("app-%d", i)}, Annotations: map[string]string{
			netattach.NetworksAnnotation: fmt.Sprintf("net-%d,net-%d,net-%d", 3*i, 3*i+1, (3*i+500)%definitions),
		}}
	}
	planned := func(pod *Pod) {
		inv, err := netconf.FromRequest(plan.Request{Version: 1, PodNamespace: pod.Namespace, PodName: pod.Name, ContainerID: "c0", IfName: "eth0",
			Config: []byte(`{"name":"manifold","type":"manifold","delegates":[{"type":"bridge","name":"cluster"}]}`)})
		if err != nil {
			b.Fatal(err)
		}
		sel, err := Select(inv, pod)
		if err != nil {
			b.Fatal(err)
		}
		if p, err := sel.Plan(src); err != nil || len(p.Attachments) != 4 {
			b.Fatal(p, err)
		}
	}
	for _, pod := range pods { // as on a node that has planned its pods before
		planned(pod)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		planned(pods[i%len(pods)])
	}
}

// A VF that a device plugin names by netdev is known by its address, and serves one
// network, whoever else advertises it. The delegate gets the plugin's name for it.
func TestVFCalledByItsNetworkDevice(t *testing.T) {
	const address, pf = "0000:21:10.4", "0000:21:00.0"
	w := world{
		networks: "fast", definitions: map[string]string{"fast": `{"cniVersion":"1.0.0","type":"mover","capabilities":{"deviceID":true}}`, "other": `{"cniVersion":"1.0.0","type":"mover"}`},
		resources: map[string]string{"fast": vfs, "other": "another.example/vfs"},
		devices:   []podresources.Device{dev("", "eth3"), ofB("", address)},
	}
	src := w.sources()
	src.Functions["eth3"] = &sriov.Function{Address: address, PF: pf, VFIndex: 2, Driver: "igbvf"}
	p, err := w.planWith(t, src)
	if err != nil {
		t.Fatal(err)
	}
	a := p.Attachments[1]
	if d := a.Device; d.ID != "eth3" || d.PCIAddress != address || d.PF != pf || d.VFIndex != 2 || d.Driver != "igbvf" {
		t.Errorf("device %+v", d)
	}
	if string(a.Capabilities["deviceID"]) != `"eth3"` || !strings.Contains(string(a.DeviceInfo), address) {
		t.Errorf("deviceID %s, device-info %s", a.Capabilities["deviceID"], a.DeviceInfo)
	}
	w.networks = "fast,other"
	if _, err := w.planWith(t, src); !cnierr.Is(err, cnierr.DeviceConflict) || !strings.Contains(err.Error(), "another.example/vfs") {
		t.Errorf("%v, want an error that it serves another network", err)
	}
}
