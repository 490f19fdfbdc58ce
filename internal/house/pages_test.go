package house

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/netattach"
)

const configurationIntro = `# Configuration keys

The plugin's configuration, made from the code by ` + "`" + `make golden` + "`" + `. Durations are strings such as ` + "`" + `"30s"` + "`" + `, paths are absolute. A key whose value cannot be is refused; an unknown key is warned of. The last column says what differs from Multus, which has the key or something like it; ` + "`" + `own` + "`" + ` marks keys that Multus does not have. What differs beside the keys is [below](#differences-in-behaviour): this page has every difference to Multus.

` + "`" + `manifold-agent config convert` + "`" + ` makes this configuration of one of Multus, see [switching](switching.md); ` + "`" + `manifold-agent config validate FILE` + "`" + ` names line and key of whatever is wrong, with ` + "`" + `--agent-config FILE` + "`" + ` in [the agent's](install.md#the-agents-configuration) as well.

| key | type | default | meaning | Multus |
|---|---|---|---|---|
`

const configurationDifferences = `
## Names of networks

` + "`" + `clusterNetwork` + "`" + ` and each element of ` + "`" + `defaultNetworks` + "`" + ` are looked up alike, and the first that is there is taken:

1. a name: the definition of that name in ` + "`" + `multusNamespace` + "`" + `
2. the configuration in ` + "`" + `confDir` + "`" + ` whose JSON ` + "`" + `name` + "`" + ` it is
3. an absolute path of a directory: its first configuration by file name
4. an absolute path of a file

` + "`" + `namespace/name` + "`" + ` is a definition of another namespace, and no file serves in its place. A pod's annotations name definitions alone, never a file of the node. What is found when a pod is added is recorded, and serves its CHECK and DEL; STATUS and GC look the default network up the same way. A definition without ` + "`" + `spec.config` + "`" + ` is the file of its name; one that is broken refuses the pod, whatever files there are. A network that is found nowhere refuses the pod, retryably: a default network's plugin may not have written its configuration yet. The agent reads these files: a path outside the runtime's directory of configurations must be mounted into its container, which the chart's value ` + "`" + `host.networkDirs` + "`" + ` does.

## Differences in behaviour

| | Multus | Manifold |
|---|---|---|
| the annotation ` + "`" + `k8s.v1.cni.cncf.io/networks` + "`" + ` or ` + "`" + `v1.multus-cni.io/default-network` + "`" + ` cannot be read | refused, or a field of it passed over | refused; with ` + "`" + `invalidAnnotation: ignore` + "`" + ` passed over as a whole, with a warning |
| ` + "`" + `v1.multus-cni.io/default-network` + "`" + ` and ` + "`" + `namespaceIsolation` + "`" + ` | not isolated: any pod takes any definition | isolated like the other annotation |
| devices of ` + "`" + `v1.multus-cni.io/default-network` + "`" + ` beside those of other networks | counted apart: two networks can get one device | one count: each device serves one network |
| an entry of an annotation has ` + "`" + `deviceID` + "`" + ` | handed to the delegate, whosever device it is | it must be one of the devices that the kubelet gave to this pod |
| an entry has ` + "`" + `manifold.dev/container` + "`" + `, ` + "`" + `manifold.dev/claim` + "`" + `, ` + "`" + `manifold.dev/request` + "`" + ` | passed over | [which device](devices.md) the network gets; ` + "`" + `manifold.dev/container` + "`" + ` of a definition without ` + "`" + `resourceName` + "`" + ` is refused |
| an entry has ` + "`" + `interfaceRequest` + "`" + ` (before Multus 3.2) | taken for ` + "`" + `interface` + "`" + ` | no effect, with a warning |
| an entry asks for an interface that is there: ` + "`" + `lo` + "`" + `, the default network's, another entry's | left to the delegate | refused before any delegate runs |
| names of definitions in the comma form | without dots | with dots too, as Kubernetes allows |
| ` + "`" + `default-route: []` + "`" + ` | no effect | every default route is removed |
| a definition has ` + "`" + `resourceName` + "`" + ` and no device is allocated | the delegate runs without one | refused, with what was asked and given |
| devices of [resource claims](claims.md) | from ResourceClaims and ResourceSlices, asked of the API server for each pod; a device without its attributes is passed over or fails the pod | from the kubelet and the drivers' files on the node, then from one watch of ResourceSlices; a network can name claim and request |
| ` + "`" + `ips` + "`" + `, ` + "`" + `mac` + "`" + ` and others without a plugin that has the capability | dropped | refused |
| the interface is not what result and request say | not looked at | undone and refused; ` + "`" + `verify: warn` + "`" + ` or ` + "`" + `off` + "`" + ` |
| a delegate's DEL fails | forgotten, unless ` + "`" + `retryDeleteOnError` + "`" + ` | kept and tried again |
| the pod was deleted and its file is lost | nothing is released | the journal is the only state, written before the first delegate runs |
| the API server is down | pods fail | pods known to the kubelet are attached from the snapshot of definitions |
| GC, STATUS | of no delegate, or of the default network | GC of all networks, STATUS of the default network and of what plans are made from |
| several ` + "`" + `default-route` + "`" + ` gateways | one route | one each, with metrics in order |
| CHECK | of the networks of ` + "`" + `delegates` + "`" + ` alone, as configured now | of every attachment, as it was added |
| a configuration on disk has the name and is both a list and a single one | the first by file name | the list, as the specification says |
| a network has no ` + "`" + `cniVersion` + "`" + ` | 0.1.0, whose results have no interfaces and which has no CHECK | the highest that all its plugins and the runtime speak |
| a directory is named as a network | its first file must be right | what is no configuration, and Manifold's own, is passed over |
| keys of the configuration | in any case | as in the table above; ` + "`" + `config convert` + "`" + ` writes them so, ` + "`" + `config validate` + "`" + ` says so |
| ` + "`" + `binDir` + "`" + `, ` + "`" + `cniDir` + "`" + `, ` + "`" + `confDir` + "`" + ` or ` + "`" + `multusNamespace` + "`" + ` is the empty string | taken as it is: a path below whatever directory the runtime is in, no namespace | refused, with the key's name; empty ` + "`" + `globalNamespaces` + "`" + ` and ` + "`" + `logLevel` + "`" + ` stand for their defaults |
| options of the DaemonSet's entrypoint | ` + "`" + `--multus-conf-file` + "`" + `, ` + "`" + `--namespace-isolation` + "`" + ` and others write the configuration | ` + "`" + `manifold-agent install` + "`" + ` writes it, see [installing](install.md) |
`

func TestConfigurationPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString(configurationIntro)
	conf := reflect.TypeFor[netconf.Conf]()
	for i := range conf.NumField() {
		tag := conf.Field(i).Tag
		def := tag.Get("default")
		if def != "" {
			def = "`" + def + "`"
		}
		meaning := tag.Get("doc")
		if meaning == "" {
			t.Errorf("key %s has no meaning", tag.Get("json"))
		}
		if enum := tag.Get("enum"); enum != "" {
			meaning += " (`" + strings.ReplaceAll(enum, " ", "`, `") + "`)"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", tag.Get("json"), typeOf(conf.Field(i).Type), def, meaning, tag.Get("multus"))
	}
	b.WriteString(configurationDifferences)
	golden(t, filepath.Join(root, "docs", "configuration.md"), b.String())
}

func typeOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[netconf.Duration]():
		return "duration"
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
		return "list of strings"
	case t.Kind() == reflect.Slice:
		return "list of objects"
	case t.Kind() == reflect.Map || t.Kind() == reflect.Struct:
		return "object"
	case t.Kind() == reflect.Bool:
		return "boolean"
	}
	return "string"
}

// remedies says for each kind what to do; the page and this table grow with the
// kinds.
var remedies = map[cnierr.Kind][2]string{
	cnierr.Other:               {"nobody classified it", "see the message; report it"},
	cnierr.InvalidEnvironment:  {"a CNI_ variable is missing or malformed", "the container runtime calls the plugin wrongly"},
	cnierr.IO:                  {"a file, a socket or netlink failed", "see the message: full or read-only disk, missing permission"},
	cnierr.Decode:              {"stdin or a stored document is not JSON", "correct the configuration that the runtime reads"},
	cnierr.InvalidConfig:       {"Manifold's own configuration is wrong", "correct the key that is named"},
	cnierr.IncompatibleVersion: {"the CNI version is not supported, or a result cannot be converted to it", "use 0.1.0 to 1.1.0"},
	cnierr.TryAgain:            {"a source is not ready: the pod is not known yet, the API server or the kubelet does not answer", "nothing, if it passes; else see whether the agent reaches them"},
	cnierr.NotReady:            {"STATUS: ADD cannot be served", "see the message: default network, programs, agent's sources"},
	cnierr.InvalidAnnotation:   {"the pod's annotation is wrong", "correct it; entry and field are named"},
	cnierr.DefinitionMissing:   {"the definition exists nowhere", "create it, or correct the annotation"},
	cnierr.InvalidDefinition:   {"the definition's configuration is wrong", "correct spec.config"},
	cnierr.Isolation:           {"namespaceIsolation forbids the definition to this pod", "use one of the pod's namespace, or list its namespace in globalNamespaces"},
	cnierr.NoDevice:            {"fewer devices are allocated, or can be told, than attachments need", "request as many of the resource in a container's limits, or correct resourceName; let the driver of a resource claim publish what its device is"},
	cnierr.DeviceConflict:      {"a pinned device is not this pod's or serves another network, or sources contradict each other", "drop deviceID; delete the older pod of the same name"},
	cnierr.DeviceVanished:      {"the allocated device is not on this node", "delete the pod; see why the device plugin advertises the device"},
	cnierr.DelegateMissing:     {"the delegate's program is absent or not executable", "install it where the message says"},
	cnierr.DelegateFailed:      {"the delegate failed, died or printed no result; an error object of its own keeps its code", "see the delegate's message"},
	cnierr.DelegateTimeout:     {"the delegate did not end in time and was ended", "see why it hangs, or raise delegateTimeout"},
	cnierr.VerifyFailed:        {"the interface is not what plan, request and result say; undone", "the fields, wanted and found, are named; see the delegate"},
	cnierr.InterfaceConflict:   {"an interface of that name exists, or two attachments ask for it", "choose another interface name"},
	cnierr.JournalVersion:      {"the journal was written by a newer release", "run that release or a newer one"},
	cnierr.JournalCorrupt:      {"the journal cannot be read; what libcni's records and the claims of VFs know was released", "look for what is left; the file was set aside"},
	cnierr.TeardownIncomplete:  {"something is left behind", "the runtime tries again; the journal keeps what is left. Of a network whose ADD was refused, and whose plugin refuses every DEL, an interface that is in the sandbox is never deleted, since it may be one that was moved in from the host: correct the plugin, or take the interface away by hand"},
	cnierr.Busy:                {"another operation on the sandbox still runs", "nothing; the runtime tries again"},
	cnierr.Quarantined:         {"a VF could not be made as it was before its last use", "see what the driver refuses, reset the VF by hand, or take it as it is with manifold-agent reconcile --accept"},
	cnierr.UnknownContainer:    {"CHECK of a sandbox that is not attached", "the runtime must ADD it first"},
}

func TestErrorPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Error codes\n\nMade from the code by `make golden`. A failed call prints one CNI error object; its message names the pod, the network, the interface, the resource and the device as far as they are known, the cause, and what to do. Codes below 100 are the CNI specification's.\n\n| code | kind | cause | what to do |\n|---|---|---|---|\n")
	for _, k := range cnierr.Kinds() {
		r, ok := remedies[k]
		if !ok {
			t.Errorf("kind %s has no line for the page", k)
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", k.Code(), k, r[0], r[1])
	}
	golden(t, filepath.Join(root, "docs", "errors.md"), b.String())
}

const metricsIntro = `# Health, readiness and metrics

Made from the code by ` + "`make golden`" + `. With the key ` + "`listen`" + ` of its [configuration](install.md) the agent answers over plain HTTP, to anybody who reaches the address; metrics name pods and devices.

| path | answer |
|---|---|
| ` + "`/healthz`" + ` | 200 while the agent's socket accepts a call and answers it, else 503: the process must be restarted. A source that is missing does not make it unhealthy |
| ` + "`/readyz`" + ` | 200 when plans can be made, else 503; a line for each part: pods and definitions are known, the kubelet's PodResources socket accepts connections, ResourceSlices are watched where they are to be, the cluster default network exists, the runtime takes Manifold's CNI configuration |
| ` + "`/metrics`" + ` | the metrics below, those of the Go runtime and of the process |

Alert rules for Prometheus and a dashboard for Grafana on these metrics are in ` + "`deploy/monitoring`" + `; the chart's value ` + "`prometheusRule.enabled`" + ` hands the rules to Prometheus's operator, ` + "`podMonitor.enabled`" + ` lets that scrape agents and admission (` + "`instance`" + ` is then the node, and for agents on the hosts' network ` + "`http.public`" + ` must be set), and ` + "`dashboard.enabled`" + ` has a ConfigMap for the sidecar of Grafana. What to do about an alert is in [troubleshooting](troubleshooting.md). The counters that other exporters have by PCI address get their pods by a join: ` + "`… * on (instance, pciAddr) group_left (namespace, pod, interface) manifold_attached_device_info`" + `.

| metric | type | labels | meaning |
|---|---|---|---|
`

func TestMetricsPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString(metricsIntro)
	for _, d := range metrics.Definitions() {
		labels := ""
		if len(d.Labels) > 0 {
			labels = "`" + strings.Join(d.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Type, labels, d.Help)
	}
	golden(t, filepath.Join(root, "docs", "metrics.md"), b.String())
}

// Whoever finds a reason or a kind of error in an Event finds it on the page.
func TestTroubleshootingHasEveryReasonAndKind(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, reason := range agent.Reasons() {
		if !strings.Contains(page, "\n| `"+reason+"`") {
			t.Errorf("no row begins with reason %s", reason)
		}
	}
	for _, k := range cnierr.Kinds() {
		if !strings.Contains(page, "`"+k.String()+"`") {
			t.Errorf("kind %s has no entry", k)
		}
	}
}

// The page of definitions has every annotation, and every key of a selection and
// of what is compared of a configuration.
func TestDefinitionsPageIsComplete(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs", "definitions.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		netattach.NetworksAnnotation, netattach.StatusAnnotation, netattach.ResourceNameAnnotation, netattach.NodeSelectorAnnotation,
		netattach.CarrierAnnotation, netattach.DefaultNetworkAnnotation, netattach.ContainerKey, netattach.StatusVolumeAnnotation,
	}
	full := netattach.Selection{
		Name: "x", Namespace: "x", Interface: "x", IPs: []string{"x"}, MAC: "x", Ports: []netattach.PortMapping{{}}, Bandwidth: &netattach.Bandwidth{},
		GUID: "x", CNIArgs: map[string]json.RawMessage{}, DeviceID: "x", Container: "x", Claim: "x", Request: "x", DefaultRoute: &[]string{}, IPAMClaimReference: "x",
		Unknown: map[string]json.RawMessage{},
	}
	for v, i := reflect.ValueOf(full), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("field %s of a selection is not looked for", v.Type().Field(i).Name)
		}
	}
	text, err := json.Marshal(full)
	keys := map[string]json.RawMessage{}
	if err == nil {
		err = json.Unmarshal(text, &keys)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.Concat(want, slices.Sorted(maps.Keys(keys))) {
		if !strings.Contains(string(raw), "| `"+key+"` |") {
			t.Errorf("docs/definitions.md has no row for %s", key)
		}
	}
}
