package house

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/netconf"
)

func TestConfigurationPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Configuration keys\n\nThe plugin's configuration, made from the code by `make golden`. Durations are strings such as `\"30s\"`. A key of the wrong type is refused; an unknown key is warned of. The last column says what differs from Multus, which has the key or something like it; `own` marks keys that Multus does not have.\n\n| key | type | default | meaning | Multus |\n|---|---|---|---|---|\n")
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
	cnierr.JournalCorrupt:      {"the journal cannot be read; what libcni knows was released", "look for what is left; the file was set aside"},
	cnierr.TeardownIncomplete:  {"something is left behind", "the runtime tries again; the journal keeps what is left"},
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
| ` + "`/readyz`" + ` | 200 when plans can be made, else 503; a line for each part: pods and definitions are known, the kubelet's PodResources socket accepts connections, ResourceSlices are watched where they are to be, the cluster default network exists |
| ` + "`/metrics`" + ` | the metrics below, those of the Go runtime and of the process |

Alert rules for Prometheus and a dashboard for Grafana on these metrics are in ` + "`deploy/monitoring`" + `; the chart's value ` + "`prometheusRule.enabled`" + ` hands the rules to Prometheus's operator. What to do about an alert is in [troubleshooting](troubleshooting.md). The counters that other exporters have by PCI address get their pods by a join: ` + "`… * on (instance, pciAddr) group_left (namespace, pod, interface) manifold_attached_device_info`" + `.

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
