package netattach

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Limits of a network configuration.
const (
	MaxConfig  = 256 << 10 // bytes
	MaxPlugins = 64
)

// Config is a parsed network configuration, single or list, always held as a list.
// Unknown keys keep their values verbatim.
type Config struct {
	list    map[string]json.RawMessage // the list's own keys, without "plugins"
	plugins []plugin
}

// plugin is one plugin of a chain: its keys, and what is known about it.
type plugin struct {
	keys map[string]json.RawMessage
	PluginInfo
}

// PluginInfo is what netattach knows about one plugin of a chain.
type PluginInfo struct {
	Type         string
	Capabilities map[string]bool
	IPAMType     string
	DeviceID     string // hard-coded "deviceID", else "pciBusID"; empty for none
}

// ParseConfig parses a network configuration. It refuses what could not be run: no
// plugin, a plugin that is no object or has no type, and a type that is a path, which
// could run any program of the node (CVE-2021-20206).
func ParseConfig(raw []byte) (*Config, error) {
	if len(raw) > MaxConfig {
		return nil, fieldError("", "the configuration has %d bytes, at most %d are allowed", len(raw), MaxConfig)
	}
	if !isObject(raw) {
		return nil, fieldError("", "%s is not a JSON object", clip(string(bytes.TrimSpace(raw))))
	}
	c := &Config{}
	if err := decodeJSON(raw, &c.list); err != nil {
		return nil, &Error{Text: "the configuration is not JSON", Err: err}
	}
	for _, key := range []string{"name", "cniVersion"} {
		if _, err := stringOf(c.list, key); err != nil {
			return nil, err
		}
	}
	var elements []json.RawMessage
	single := c.list["plugins"] == nil
	if single {
		elements = append(elements, raw)
	} else {
		// Decode into a slice of its own: decoding into one that holds raw would
		// overwrite the caller's bytes.
		if err := json.Unmarshal(c.list["plugins"], &elements); err != nil {
			return nil, &Error{Field: "plugins", Text: "it is not a list", Err: err}
		}
	}
	if len(elements) == 0 || len(elements) > MaxPlugins {
		return nil, fieldError("plugins", "it has %d plugins, 1 to %d are allowed", len(elements), MaxPlugins)
	}
	for i, e := range elements {
		p, err := parsePlugin(e)
		if err != nil {
			return nil, &Error{Entry: fmt.Sprintf("plugin %d", i+1), Err: err}
		}
		c.plugins = append(c.plugins, *p)
	}
	if single {
		c.liftSingle()
	}
	delete(c.list, "plugins")
	return c, c.checkList()
}

// liftSingle turns a single configuration into a list of one. Name, versions and the
// flags that libcni reads from lists move to the list; everything else stays in the
// plugin.
func (c *Config) liftSingle() {
	own := c.plugins[0].keys
	c.list = map[string]json.RawMessage{}
	for _, key := range []string{"name", "cniVersion", "cniVersions", "disableCheck", "disableGC"} {
		if v, ok := own[key]; ok {
			c.list[key] = v
			delete(own, key)
		}
	}
}

// checkList refuses list keys of a type that libcni would refuse only later, when an
// attachment has to be torn down.
func (c *Config) checkList() error {
	for _, key := range []string{"disableCheck", "disableGC", "loadOnlyInlinedPlugins"} {
		raw, ok := c.list[key]
		if !ok {
			continue
		}
		switch strings.ToLower(strings.Trim(string(raw), `"`)) {
		case "true", "false":
		default:
			return fieldError(key, "%s is not true or false", clip(string(raw)))
		}
	}
	if raw, ok := c.list["cniVersions"]; ok {
		var versions []string
		if err := json.Unmarshal(raw, &versions); err != nil {
			return &Error{Field: "cniVersions", Text: "it is not a list of strings", Err: err}
		}
		for _, v := range versions {
			if err := checkVersion("cniVersions", v); err != nil {
				return err
			}
		}
	}
	return checkVersion("cniVersion", c.CNIVersion())
}

// supported are the CNI versions that a configuration may ask for.
var supported = []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

func checkVersion(field, v string) error {
	if !slices.Contains(supported, v) {
		return fieldError(field, "%s is not one of%s", clip(v), strings.Join(supported, " "))
	}
	return nil
}

// stringOf returns keys[key] as a string, empty when it is absent.
func stringOf(keys map[string]json.RawMessage, key string) (string, error) {
	raw, ok := keys[key]
	if !ok {
		return "", nil
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fieldError(key, "%s is not a string", clip(string(raw)))
	}
	return *s, nil
}

// parsePlugin reads one plugin of a chain.
func parsePlugin(raw json.RawMessage) (*plugin, error) {
	if !isObject(raw) {
		return nil, fieldError("", "%s is not an object", clip(string(raw)))
	}
	p := &plugin{}
	err := json.Unmarshal(raw, &p.keys)
	if err != nil {
		return nil, &Error{Text: "it is not an object", Err: err}
	}
	if p.Type, err = stringOf(p.keys, "type"); err != nil {
		return nil, err
	}
	if err := checkType("type", p.Type); err != nil {
		return nil, err
	}
	known, err := knownOf(raw, p.Type)
	if err != nil {
		return nil, err
	}
	p.Capabilities, p.IPAMType = known.Capabilities, known.IPAM.Type
	if p.IPAMType != "" {
		if err := checkType("ipam.type", p.IPAMType); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Backward(deviceKeys) {
		if v, err := stringOf(p.keys, key); err == nil && v != "" {
			p.DeviceID = v
		}
	}
	return p, nil
}

// knownKeys are the keys of the CNI specification.
type knownKeys struct {
	types.PluginConf
	Args struct {
		CNI map[string]json.RawMessage `json:"cni"`
	} `json:"args"`
}

// knownOf decodes the keys that libcni and the plugins decode. They must decode now,
// and again to the same values after libcni has sorted them: a key that differs from a
// specified one only in case stands for it, and of two such keys the last wins.
func knownOf(raw json.RawMessage, typ string) (*knownKeys, error) {
	known, err := decodeKnown(raw)
	if err != nil {
		return nil, err
	}
	sorted, err := sortKeys(raw)
	if err != nil {
		return nil, err
	}
	rendered, err := decodeKnown(sorted)
	switch {
	case err != nil:
		return nil, err
	case known.Type != typ || rendered.Type != typ:
		return nil, fieldError("type", "it is given more than once, in other spellings")
	case known.IPAM.Type != rendered.IPAM.Type:
		return nil, fieldError("ipam", "it is given more than once, in other spellings")
	}
	return known, nil
}

func decodeKnown(raw json.RawMessage) (*knownKeys, error) {
	k := &knownKeys{}
	if err := json.Unmarshal(raw, k); err != nil {
		return nil, &Error{Text: "a key of the CNI specification has the wrong type", Err: err}
	}
	return k, nil
}

// sortKeys returns a configuration as libcni passes it on: with the keys of all objects
// sorted.
func sortKeys(raw json.RawMessage) (json.RawMessage, error) {
	var v any
	err := json.Unmarshal(raw, &v)
	if err == nil {
		raw, err = json.Marshal(v)
	}
	if err != nil {
		return nil, &Error{Text: "it cannot be encoded again", Err: err}
	}
	return raw, nil
}

// checkType refuses a plugin type that is not the plain name of a program.
func checkType(field, t string) error {
	switch {
	case t == "":
		return fieldError(field, "it is missing; name the plugin's program")
	case len(t) > 255, t == ".", t == "..", strings.ContainsAny(t, "/\\\x00\n"):
		return fieldError(field, "%s is not the plain name of a program", clip(t))
	}
	return nil
}

// Name returns the network's name, empty when the configuration has none.
func (c *Config) Name() string { s, _ := stringOf(c.list, "name"); return s }

// CNIVersion returns the configuration's CNI version, empty when it has none.
func (c *Config) CNIVersion() string { s, _ := stringOf(c.list, "cniVersion"); return s }

// Plugins returns what is known about each plugin, in chain order.
func (c *Config) Plugins() []PluginInfo {
	out := make([]PluginInfo, len(c.plugins))
	for i := range c.plugins {
		out[i] = c.plugins[i].PluginInfo
	}
	return out
}

// HasCapability reports whether any plugin of the chain declares a capability.
func (c *Config) HasCapability(name string) bool {
	return slices.ContainsFunc(c.plugins, func(p plugin) bool { return p.Capabilities[name] })
}

// Devices returns the devices that the configuration itself names, verbatim and each
// once: PCI addresses and other IDs, and the keys of the plugin host-device, which are
// a netdev's name, its MAC and its directory in sysfs. With replaced it omits those
// that a rendered device replaces. A "master", on which another netdev is stacked,
// stays on the host and is not included. Keys match in any case, as they do for most
// plugins.
func (c *Config) Devices(replaced bool) []string {
	var out []string
	add := func(keys map[string]json.RawMessage, names ...string) {
		for key, raw := range keys {
			var s string
			named := slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, key) })
			if named && json.Unmarshal(raw, &s) == nil && s != "" {
				out = append(out, s)
			}
		}
	}
	for i := range c.plugins {
		keys := c.plugins[i].keys
		add(keys, "device", "hwaddr", "kernelpath")
		if !replaced {
			add(keys, deviceKeys...)
		}
		for key, raw := range keys {
			var runtime map[string]json.RawMessage
			if strings.EqualFold(key, "runtimeConfig") && json.Unmarshal(raw, &runtime) == nil {
				add(runtime, "deviceID")
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// deviceKeys are the keys through which Render gives a plugin its device.
var deviceKeys = []string{"deviceID", "pciBusID"}

// RenderOptions is what an attachment adds to a network's configuration.
type RenderOptions struct {
	Name     string // for a configuration without a name: the definition's (specification 3.4.2)
	DeviceID string // the allocated device; empty for none
	CNIArgs  map[string]json.RawMessage
	// IPAMClaimReference names an IPAMClaim for the chain's IPAM; empty for none.
	IPAMClaimReference string
}

// Render returns the configuration list that a delegate chain runs with, and notes for
// people about what was overridden. Every plugin gets the device as deviceID and
// pciBusID and reads the one it knows. Render does not change the Config.
func (c *Config) Render(o RenderOptions) (out []byte, notes []string, err error) {
	list := maps.Clone(c.list)
	if c.Name() == "" {
		list["name"] = quote(o.Name)
	}
	plugins := make([]map[string]json.RawMessage, len(c.plugins))
	for i := range c.plugins {
		p := &c.plugins[i]
		plugins[i] = maps.Clone(p.keys)
		if o.DeviceID != "" {
			if p.DeviceID != "" && p.DeviceID != o.DeviceID {
				notes = append(notes, fmt.Sprintf("plugin %s names device %s itself; the allocated %s is used", p.Type, clip(p.DeviceID), clip(o.DeviceID)))
			}
			injectDevice(plugins[i], quote(o.DeviceID))
		}
		if err := mergeArgs(plugins[i], o); err != nil {
			return nil, nil, &Error{Entry: fmt.Sprintf("plugin %d", i+1), Err: err}
		}
	}
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, nil, &Error{Text: "encode plugins", Err: err}
	}
	list["plugins"] = raw
	if out, err = json.Marshal(list); err != nil {
		return nil, nil, &Error{Text: "encode configuration", Err: err}
	}
	return out, notes, nil
}

// injectDevice gives a plugin its device. It replaces every spelling of the keys that
// the plugin might accept.
func injectDevice(keys map[string]json.RawMessage, id json.RawMessage) {
	for _, name := range deviceKeys {
		maps.DeleteFunc(keys, func(key string, _ json.RawMessage) bool { return strings.EqualFold(key, name) })
		keys[name] = id
	}
}

// mergeArgs merges the selection's arguments into args.cni. They override the
// definition's (specification 4.1.2).
func mergeArgs(keys map[string]json.RawMessage, o RenderOptions) error {
	if len(o.CNIArgs) == 0 && o.IPAMClaimReference == "" {
		return nil
	}
	args := map[string]json.RawMessage{}
	if raw, ok := keys["args"]; ok {
		if err := json.Unmarshal(raw, &args); err != nil {
			return &Error{Field: "args", Text: "it is not an object", Err: err}
		}
	}
	cni := map[string]json.RawMessage{}
	if raw, ok := args["cni"]; ok {
		if err := json.Unmarshal(raw, &cni); err != nil {
			return &Error{Field: "args.cni", Text: "it is not an object", Err: err}
		}
	}
	if cni == nil {
		cni = map[string]json.RawMessage{}
	}
	maps.Copy(cni, o.CNIArgs)
	if o.IPAMClaimReference != "" {
		cni["ipam-claim-reference"] = quote(o.IPAMClaimReference)
	}
	raw, err := json.Marshal(cni)
	if err != nil {
		return &Error{Field: "cni-args", Text: "it cannot be encoded", Err: err}
	}
	if args == nil {
		args = map[string]json.RawMessage{}
	}
	args["cni"] = raw
	if keys["args"], err = json.Marshal(args); err != nil {
		return &Error{Field: "args", Text: "it cannot be encoded", Err: err}
	}
	return nil
}

// quote returns s as a JSON string.
func quote(s string) json.RawMessage {
	raw, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`) // a string always encodes
	}
	return raw
}
