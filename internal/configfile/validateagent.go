package configfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/internal/traces"
)

// wrongKey is a key of the agent's configuration with an impossible value.
type wrongKey struct {
	key     string
	element string // the rest of the path, as in positions; empty for the value itself
	err     error
	fix     string
}

// wrong returns the keys with impossible values. The defaults must be filled in.
func (c *Agent) wrong() (found []wrongKey) {
	add := func(key string, err error, fix string) {
		if err != nil {
			found = append(found, wrongKey{key, "", err, fix})
		}
	}
	for _, p := range c.paths() {
		if p.value != "" && !filepath.IsAbs(p.value) {
			add(p.key, fmt.Errorf("%.64q is not an absolute path", p.value), "give an absolute path")
		}
	}
	add("node", nodeName(c.Node), "give the node's name in Kubernetes, or leave node out for the host's")
	add("reconcile", oneOf(c.Reconcile, ReconcileOff, ReconcileReport, ReconcileRepair), "choose one of: off report repair")
	add("logFormat", oneOf(c.LogFormat, logs.JSON, logs.Text), "choose one of: json text")
	add("listen", address(c.Listen), "give host:port, or :port for all addresses")
	add("view", address(c.View), "give host:port, or :port for all addresses")
	if c.Traces != "" {
		_, err := traces.Endpoint(c.Traces)
		add("traces", err, "give the URL of a collector, as http://collector:4318")
	}
	for i, entry := range c.ReconcileExclude {
		if _, err := reconcile.ParseExclude(entry); err != nil {
			add("reconcileExclude", err, "name each PF by its PCI address, for example 0000:5e:00.0, or by its network device")
			found[len(found)-1].element = fmt.Sprintf("/%d", i)
		}
	}
	for key, what := range c.needServer() {
		if c.APIServer == "" {
			add(key, errors.New(what), "set apiServer, or leave "+key+" out")
		}
	}
	slices.SortStableFunc(found, func(a, b wrongKey) int { return strings.Compare(a.key, b.key) })
	return found
}

// needServer returns the keys that are set but have no effect without an API server,
// with the reason.
func (c *Agent) needServer() map[string]string {
	out := map[string]string{}
	if c.StartupTaint != "" {
		out["startupTaint"] = "there is no API server to remove the taint from"
	}
	if c.ResourceSlices {
		out["resourceSlices"] = "there is no API server to read them from"
	}
	if c.View != "" {
		out["view"] = "there is no API server to say who may see it"
	}
	return out
}

// pathKey is a key of the configuration whose value is a path.
type pathKey struct {
	key, value string
	own        bool // Manifold creates it if it is missing
}

// paths returns the keys that are paths.
func (c *Agent) paths() []pathKey {
	server := c.APIServer
	if server == InCluster {
		server = ""
	}
	return []pathKey{
		{"socket", c.Socket, true}, {"cniDir", c.CNIDir, true}, {"snapshot", c.Snapshot, true}, {"cniConfig", c.CNIConfig, true},
		{"kubeletDir", c.KubeletDir, false}, {"podResources", c.PodResources, false}, {"checkpoint", c.Checkpoint, false},
		{"podsAPI", c.PodsAPI, false}, {"claimCheckpoint", c.ClaimCheckpoint, false}, {"deviceMetadata", c.DeviceMetadata, false},
		{"apiServer", server, false}, {"sysRoot", c.SysRoot, false}, {"podManifests", c.PodManifests, false},
		{"definitionManifests", c.DefinitionManifests, false},
	}
}

// nodeName refuses a name that no node can have; empty stands for the host's name.
func nodeName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); name != "" && len(problems) > 0 {
		return fmt.Errorf("%.64q: %s", name, problems[0])
	}
	return nil
}

// oneOf refuses a value that is none of the words.
func oneOf(given string, words ...string) error {
	if slices.Contains(words, given) {
		return nil
	}
	return fmt.Errorf("%.64q is unknown", given)
}

// address refuses an address that nothing can listen on; empty stands for none.
func address(text string) error {
	if text == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	return err
}

// ValidateAgent returns the mistakes in a configuration file of the agent, in order of
// line: what the agent would refuse, and as warnings what has no effect or names a path
// that does not exist on this machine.
func ValidateAgent(raw []byte) []Finding {
	v := &validator{positions: positionsOf(raw)}
	var keys map[string]json.RawMessage
	var syntax *json.SyntaxError
	switch err := json.Unmarshal(raw, &keys); {
	case errors.As(err, &syntax):
		return []Finding{{Line: lineAt(raw, syntax.Offset), Text: err.Error()}}
	case err != nil || keys == nil:
		return []Finding{{Line: 1, Text: "not a JSON object"}}
	}
	c, given := &Agent{}, map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		v.agentKey(c, given, key, keys[key])
	}
	c.defaults()
	for _, w := range c.wrong() {
		if as := given[w.key]; as != "" { // else a default that derives from another key
			v.add("/"+as+w.element, as, "%v; %s", w.err, w.fix)
		}
	}
	for _, p := range c.paths() {
		if as := given[p.key]; as != "" && filepath.IsAbs(p.value) && !p.own && !files.Exists(p.value) {
			v.warn("/"+as, as, "%s does not exist on this machine", p.value)
		}
	}
	if len(c.ReconcileExclude) > 0 && c.Reconcile != ReconcileRepair {
		v.warn("/reconcileExclude", "reconcileExclude", "no effect without reconcile: repair")
	}
	return v.inOrder()
}

// agentKey decodes one key of the agent's configuration. given maps the keys that were
// set before it to their spellings in the file.
func (v *validator) agentKey(c *Agent, given map[string]string, key string, raw json.RawMessage) {
	fields := reflect.ValueOf(c).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Tag.Get("json")
		if name == "-" || !strings.EqualFold(name, key) { // the agent ignores case as well
			continue
		}
		if name != key {
			v.warn("/"+key, key, "the correct spelling is %s", name)
		}
		if given[name] != "" {
			v.add("/"+key, key, "given twice, in two spellings")
		}
		if isSet(raw) {
			given[name] = key
		}
		if err := json.Unmarshal(raw, fields.Field(i).Addr().Interface()); err != nil {
			v.add("/"+key, key, "%v", netconf.Mistyped(err, fields.Field(i).Type()))
			fields.Field(i).SetZero()
		}
		return
	}
	hint := ""
	if known, _ := netconf.CheckKey(key, nil); known {
		hint = ": it is a key of the plugin"
	}
	v.add("/"+key, key, "unknown, and the agent refuses the file%s", hint)
}
