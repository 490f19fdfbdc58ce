package house

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/netattach"
)

// goldenTable is [golden] for the rows of one table of a page, found by the table's
// header. Everything around the rows is written by hand.
func goldenTable(t *testing.T, page, header, rows string) {
	t.Helper()
	path := filepath.Join(root, "docs", page)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := header + "\n" + regexp.MustCompile(`[^|]+`).ReplaceAllString(header, "---") + "\n"
	before, after, ok := strings.Cut(string(raw), head)
	if !ok {
		t.Fatalf("%s has no table with the header %s", path, header)
	}
	for strings.HasPrefix(after, "|") {
		_, after, _ = strings.Cut(after, "\n")
	}
	golden(t, path, before+head+rows+after)
}

func TestConfigurationPageIsTheCodes(t *testing.T) {
	var b strings.Builder
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
	goldenTable(t, "configuration.md", "| key | type | default | meaning | Multus |", b.String())
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

// remedies gives the cause and the remedy of each kind. A new kind needs a row here, and
// so gets one on the page.
var remedies = map[cnierr.Kind][2]string{
	cnierr.Other:               {"not classified", "see the message; report it"},
	cnierr.InvalidEnvironment:  {"a CNI_ variable is missing or malformed", "the container runtime calls the plugin wrongly"},
	cnierr.IO:                  {"a file, a socket or netlink failed", "see the message: full or read-only disk, missing permission"},
	cnierr.Decode:              {"stdin or a stored document is not JSON", "correct the configuration that the runtime reads"},
	cnierr.InvalidConfig:       {"Manifold's own configuration is wrong", "correct the key that is named"},
	cnierr.IncompatibleVersion: {"the CNI version is not supported, or a result cannot be converted to it", "use 0.1.0 to 1.1.0"},
	cnierr.TryAgain:            {"a source is not ready: the pod is not known yet, the API server or the kubelet does not answer", "nothing if it passes; otherwise check that the agent reaches them"},
	cnierr.NotReady:            {"STATUS: ADD cannot be served", "see the message: default network, programs, agent's sources"},
	cnierr.InvalidAnnotation:   {"the pod's annotation is wrong", "correct it; entry and field are named"},
	cnierr.DefinitionMissing:   {"the definition does not exist anywhere", "create it, or correct the annotation"},
	cnierr.InvalidDefinition:   {"the definition's configuration is wrong", "correct spec.config"},
	cnierr.Isolation:           {"namespaceIsolation forbids the definition to this pod", "use a definition of the pod's namespace, or list the definition's namespace in globalNamespaces"},
	cnierr.NoDevice:            {"fewer devices are allocated, or can be identified, than attachments need", "request enough of the resource in a container's limits, or correct resourceName; have the driver of a resource claim publish which device it allocated"},
	cnierr.DeviceConflict:      {"a pinned device is not this pod's or serves another network, or sources contradict each other", "drop deviceID; delete the older pod of the same name"},
	cnierr.DeviceVanished:      {"the allocated device is not on this node", "delete the pod; see why the device plugin advertises the device"},
	cnierr.DelegateMissing:     {"the delegate's program is absent or not executable", "install it where the message says"},
	cnierr.DelegateFailed:      {"the delegate failed, died or printed no result; an error object of its own keeps its code", "see the delegate's message"},
	cnierr.DelegateTimeout:     {"the delegate did not exit in time and was killed", "see why it hangs, or raise delegateTimeout"},
	cnierr.VerifyFailed:        {"the interface is not what the plan, the request and the result say; the ADD was undone", "the message names the fields, wanted and found; see the delegate"},
	cnierr.InterfaceConflict:   {"an interface of that name exists, or two attachments ask for it", "choose another interface name"},
	cnierr.JournalVersion:      {"the journal was written by a newer release", "run that release or a newer one"},
	cnierr.JournalCorrupt:      {"the journal cannot be read; everything known from libcni's records and the VFs' claims was released", "check what is left; the damaged file was set aside"},
	cnierr.TeardownIncomplete:  {"something is left behind", "nothing at first: the runtime tries again, and the journal keeps what is left. If the ADD of a network was refused and its plugin refuses every DEL, an interface in the sandbox is never deleted, since it may have been moved in from the host: correct the plugin, or remove the interface by hand"},
	cnierr.Busy:                {"another operation on the sandbox is still running", "nothing; the runtime tries again"},
	cnierr.Quarantined:         {"a VF could not be restored after its last use", "see what the driver refuses, reset the VF by hand, or accept its current state with manifold-agent reconcile --accept"},
	cnierr.UnknownContainer:    {"CHECK of a sandbox that is not attached", "the runtime must ADD it first"},
}

func TestErrorPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	for _, k := range cnierr.Kinds() {
		r, ok := remedies[k]
		if !ok {
			t.Errorf("kind %s has no line for the page", k)
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", k.Code(), k, r[0], r[1])
	}
	goldenTable(t, "errors.md", "| code | kind | cause | what to do |", b.String())
}

func TestMetricsPageIsTheCodes(t *testing.T) {
	var b strings.Builder
	for _, d := range metrics.Definitions() {
		labels := ""
		if len(d.Labels) > 0 {
			labels = "`" + strings.Join(d.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Type, labels, d.Help)
	}
	goldenTable(t, "metrics.md", "| metric | type | labels | meaning |", b.String())
}

// A reader who finds a reason or a kind of error in an Event finds it on the page.
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

// The page on definitions lists every annotation and every key of a selection.
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
