package configfile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/netattach"
)

// Conversion is the result of converting a configuration of Multus.
type Conversion struct {
	Plugin  []byte   // the plugin's configuration list, for the runtime's directory
	Agent   []byte   // the agent's configuration
	Changes []string // the differences from the given configuration, one sentence each
}

// daemonKeys maps the keys of Multus's daemon and of its installer to what replaces
// them here.
var daemonKeys = map[string]string{
	"chrootDir":           "delegates run on the node itself; paths below it became the node's",
	"cniConfigDir":        "'manifold-agent install --cni-conf-dir' replaces it",
	"daemonSocketDir":     "agentSocket replaces it",
	"socketDir":           "agentSocket replaces it",
	"metricsPort":         "the agent serves no metrics on a port of the plugin's configuration",
	"multusConfigFile":    "'manifold-agent install' writes the configuration",
	autoconfigDir:         "'manifold-agent install' pins the default network by name",
	"forceCNIVersion":     "cniVersion of the list replaces it",
	"overrideNetworkName": "name of the list replaces it",
	"cleanupConfigOnExit": "the configuration is never absent while installed; 'manifold-agent uninstall' removes it",
	"perNodeCertificate":  "apiServer of the agent's configuration replaces it",
}

// autoconfigDir is the key of the directory whose first configuration becomes the
// default network of Multus's daemon if nothing else names one.
const autoconfigDir = "multusAutoconfigDir"

// pathKeys are the keys whose values are files or directories of the node.
var pathKeys = []string{"binDir", "clusterNetwork", "cniDir", "confDir", "logFile", "readinessindicatorfile"}

// Convert turns a configuration of Multus, either the file that the runtime reads or
// that of its daemon, into Manifold's. Changes has a sentence for every key that is not
// taken over unchanged.
func Convert(raw []byte) (*Conversion, error) {
	const op = "convert configuration"
	doc, err := ParseDocument(op, raw)
	if err != nil {
		return nil, err
	}
	v := &converter{agent: map[string]any{}}
	plugins := doc.Plugins
	at := slices.IndexFunc(plugins, func(p map[string]json.RawMessage) bool {
		return slices.Contains(netconf.MultusTypes, StringValue(p["type"]))
	})
	if at < 0 && len(plugins) == 1 && plugins[0]["type"] == nil {
		at = 0 // the daemon's own file names no type
	}
	if at < 0 {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "it has no plugin of type %s", strings.Join(netconf.MultusTypes, " or ")).
			WithFix("give Multus's file, for example 00-multus.conf")
	}
	converted, err := v.plugin(plugins[at])
	if err != nil {
		return nil, err
	}
	out := []any{}
	for i, p := range plugins {
		if i == at {
			out = append(out, converted)
			continue
		}
		out = append(out, p)
	}
	list := maps.Clone(doc.List)
	v.list(list, plugins[at])
	if list["plugins"], err = json.Marshal(out); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	c := &Conversion{Changes: v.changes}
	if c.Plugin, err = json.MarshalIndent(list, "", "  "); err == nil {
		c.Agent, err = json.MarshalIndent(v.agent, "", "  ")
	}
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return c, nil
}

// converter collects the results of a conversion.
type converter struct {
	agent   map[string]any
	changes []string
}

func (v *converter) say(format string, args ...any) {
	v.changes = append(v.changes, fmt.Sprintf(format, args...))
}

// plugin converts the keys of Multus's plugin.
func (v *converter) plugin(keys map[string]json.RawMessage) (map[string]any, error) {
	out := map[string]any{"type": "manifold"}
	v.say("type: %q becomes %q", StringValue(keys["type"]), "manifold")
	keys = v.inOurCase(keys)
	chroot := StringValue(keys["chrootDir"])
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		value := keys[key]
		known, err := netconf.CheckKey(key, value)
		if err != nil {
			return nil, err
		}
		switch instead, daemon := daemonKeys[key]; {
		case key == "type" || key == "name" || key == "cniVersion":
		case key == "kubeconfig":
			v.agent["apiServer"] = v.onNode(key, StringValue(value), chroot)
			v.say("kubeconfig: becomes apiServer in the agent's configuration")
		case daemon:
			v.daemonKey(out, keys, key, instead, chroot)
		case !known:
			v.say("%s: dropped; unknown", key)
		case slices.Contains(pathKeys, key):
			out[key] = v.onNode(key, StringValue(value), chroot)
		case key == "defaultNetworks":
			v.defaultNetworks(out, keys, chroot)
		case key == "delegates" && isSet(keys["clusterNetwork"]):
			v.say("delegates: dropped; no effect beside clusterNetwork")
		default:
			out[key] = value
		}
	}
	v.isolation(keys)
	// Multus's defaults, because those of 'manifold-agent install' differ.
	for key, def := range map[string]string{"cniDir": "/var/lib/cni/multus", "confDir": "/etc/cni/multus/net.d"} {
		if out[key] == nil {
			out[key] = def
		}
	}
	return out, netconf.Validate(v.completed(out, keys))
}

// daemonKey converts a key of the daemon or its installer. instead says what replaces
// it.
func (v *converter) daemonKey(out map[string]any, keys map[string]json.RawMessage, key, instead, chroot string) {
	if key != autoconfigDir || !v.autoconfig(out, keys, chroot) {
		v.say("%s: dropped; %s", key, instead)
	}
}

// autoconfig turns the directory in which Multus's daemon looks for the default network
// into clusterNetwork, if nothing else names the default network and the directory is
// not the runtime's own. It reports whether it did. The runtime's directory is left to
// 'manifold-agent install', because it may hold another network that no pod had.
func (v *converter) autoconfig(out map[string]any, keys map[string]json.RawMessage, chroot string) bool {
	if isSet(keys["clusterNetwork"]) || isSet(keys["delegates"]) || !isSet(keys[autoconfigDir]) {
		return false
	}
	silent := &converter{}
	runtimes := silent.onNode("", cmp.Or(StringValue(keys["cniConfigDir"]), "/host/etc/cni/net.d"), chroot)
	dir := StringValue(keys[autoconfigDir])
	if filepath.Clean(silent.onNode("", dir, chroot)) == filepath.Clean(runtimes) {
		return false
	}
	dir = v.onNode(autoconfigDir, dir, chroot)
	out["clusterNetwork"] = dir
	v.say("%s: becomes clusterNetwork, the first configuration in %s; mount that directory into the agent's container", autoconfigDir, dir)
	return true
}

// inOurCase returns the keys in the case of the reference. Multus reads them in any
// case.
func (v *converter) inOurCase(keys map[string]json.RawMessage) map[string]json.RawMessage {
	out := maps.Clone(keys)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if as := netconf.KeyInAnyCase(key); as != "" && keys[as] == nil {
			v.say("%s: becomes %s", key, as)
			out[as] = keys[key]
			delete(out, key)
		}
	}
	return out
}

// isSet reports whether a key has a value that counts.
func isSet(raw json.RawMessage) bool {
	return raw != nil && !slices.Contains([]string{"null", `""`, "[]"}, string(bytes.TrimSpace(raw)))
}

// defaultNetworks converts that key; the lookup is the same as Multus's. One case
// differs: a name with a slash that is not an absolute path is a path for Multus, below
// a directory that it does not choose, and it finds nothing there.
func (v *converter) defaultNetworks(out map[string]any, keys map[string]json.RawMessage, chroot string) {
	const key = "defaultNetworks"
	if !isSet(keys[key]) {
		return
	}
	if !isSet(keys["clusterNetwork"]) && isSet(keys["delegates"]) {
		v.say("%s: dropped; Multus ignores it beside delegates, where Manifold would attach it", key)
		return
	}
	var names []string
	if json.Unmarshal(keys[key], &names) != nil {
		return // not an error: CheckKey has accepted the value
	}
	for i, name := range names {
		names[i] = v.onNode(key, name, chroot)
		if !filepath.IsAbs(name) && strings.Contains(name, "/") {
			v.say("%s: %s means the definition of that namespace and name; Multus would read it as a path", key, name)
		}
	}
	out[key] = names
}

// isolation says where namespaceIsolation has more effect than in Multus.
func (v *converter) isolation(keys map[string]json.RawMessage) {
	if string(keys["namespaceIsolation"]) == "true" {
		v.say("namespaceIsolation: also applies to the pod annotation %s; list %s in globalNamespaces if pods use definitions of that namespace through it",
			netattach.DefaultNetworkAnnotation, cmp.Or(StringValue(keys["multusNamespace"]), "kube-system"))
	}
}

// completed returns the conversion as install completes it. The daemon's own file,
// which names no type, may lack a default network too.
func (v *converter) completed(out map[string]any, from map[string]json.RawMessage) map[string]any {
	if from["type"] != nil || len(from) == 0 || out["clusterNetwork"] != nil || out["delegates"] != nil {
		return out
	}
	v.say("clusterNetwork: not set; 'manifold-agent install' pins the first configuration in its directory that is not a meta-plugin's; until then 'config validate' reports it as missing")
	out = maps.Clone(out)
	out["clusterNetwork"] = "found-by-install"
	return out
}

// onNode strips the directory under which the daemon's container sees the node's files
// from a path.
func (v *converter) onNode(key, path, chroot string) string {
	for _, prefix := range []string{chroot, "/host", "/hostroot"} {
		if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/")+"/"); ok && prefix != "" && prefix != "/" {
			v.say("%s: %s is /%s on the node", key, path, rest)
			return "/" + rest
		}
	}
	return path
}

// list completes the keys of the list.
func (v *converter) list(list, plugin map[string]json.RawMessage) {
	if list["cniVersion"] == nil && plugin["cniVersion"] == nil {
		v.say("cniVersion: not set; becomes 1.1.0, with which the runtime also calls STATUS and GC; a delegate without one gets the highest version that its plugins support")
	}
	for key, def := range map[string]string{"name": "multus-cni-network", "cniVersion": "1.1.0"} {
		if list[key] == nil {
			list[key] = plugin[key]
		}
		if list[key] == nil {
			list[key], _ = json.Marshal(def) // a string always encodes
		}
	}
	if version := StringValue(list["cniVersion"]); version != "1.1.0" {
		v.say("cniVersion: %q is kept; with 1.1.0 the runtime also calls STATUS and GC", version)
	}
}

// StringValue returns the value of a JSON string, or "" for anything else.
func StringValue(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
