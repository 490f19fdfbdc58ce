package configfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// Finding is one mistake in a configuration file.
type Finding struct {
	Line    int    // from 1
	Key     string // empty for the file as a whole
	Text    string
	Warning bool // the mistake is harmless, such as a key without effect
}

// String returns the finding as one line, without the file's name.
func (f Finding) String() string {
	kind := "error"
	if f.Warning {
		kind = "warning"
	}
	if f.Key == "" {
		return fmt.Sprintf("%d: %s: %s", f.Line, kind, f.Text)
	}
	return fmt.Sprintf("%d: %s: %s: %s", f.Line, kind, f.Key, f.Text)
}

// ValidatePlugin returns the mistakes in a configuration file of the plugin, single or
// list, in order of line: what the runtime would refuse, what the plugin would refuse,
// and what has no effect.
func ValidatePlugin(raw []byte) []Finding { return validate(raw, false) }

// ValidateKeys is [ValidatePlugin] for a file that may have only some keys of the
// configuration, as the one that is given to install: what is missing in it is no mistake.
func ValidateKeys(raw []byte) []Finding { return validate(raw, true) }

func validate(raw []byte, partial bool) []Finding {
	const op = "validate configuration"
	v := &validator{positions: positionsOf(raw)}
	doc, err := ParseDocument(op, raw)
	var bad *malformed
	if errors.As(err, &bad) {
		return []Finding{{Line: bad.line, Key: bad.key, Text: bad.err.Error() + "; " + bad.fix}}
	}
	if partial {
		doc.complete()
	}
	v.document(doc)
	return v.inOrder()
}

// complete fills in what a configuration must have, as far as the document lacks it.
func (d *Document) complete() {
	missing := func(keys map[string]json.RawMessage, key, value string) {
		if keys != nil && keys[key] == nil {
			keys[key] = json.RawMessage(value)
		}
	}
	top := d.List
	if d.single {
		top = d.Plugins[0]
		missing(top, "type", `"manifold"`)
	}
	missing(top, "name", `"manifold"`)
	for _, p := range d.Plugins {
		if StringValue(p["type"]) == "manifold" && !isSet(p["delegates"]) {
			missing(p, "clusterNetwork", `"any"`)
		}
	}
}

// validator collects the mistakes in one file.
type validator struct {
	positions
	found []Finding
}

// inOrder returns the findings, including the keys that are given twice, in order of
// line.
func (v *validator) inOrder() []Finding {
	for _, path := range v.twice {
		v.warn(path, path[strings.LastIndex(path, "/")+1:], "given twice; the last one counts")
	}
	slices.SortStableFunc(v.found, func(a, b Finding) int { return a.Line - b.Line })
	return v.found
}

// add records a mistake in the value at a path. A missing key gets the line of its
// object.
func (v *validator) add(path, key, format string, args ...any) *Finding {
	for path != "" && v.lines[path] == 0 {
		path = path[:strings.LastIndex(path, "/")]
	}
	v.found = append(v.found, Finding{Line: max(1, v.lines[path]), Key: key, Text: fmt.Sprintf(format, args...)})
	return &v.found[len(v.found)-1]
}

// warn records a harmless mistake.
func (v *validator) warn(path, key, format string, args ...any) {
	v.add(path, key, format, args...).Warning = true
}

// document checks the list's own keys, then each plugin.
func (v *validator) document(doc *Document) {
	if doc.single {
		if v.plugin("", doc.Plugins[0]) {
			v.named("", doc.Plugins[0])
		}
		return
	}
	for _, key := range slices.Sorted(maps.Keys(doc.List)) {
		v.listKey(key, doc.List[key])
	}
	v.named("", doc.List)
	manifold := false
	for i, p := range doc.Plugins {
		path := fmt.Sprintf("/plugins/%d", i)
		if StringValue(p["type"]) != "manifold" {
			v.other(path, i, p)
			continue
		}
		if manifold {
			v.add(path+"/type", "type", "manifold runs twice in one list")
		}
		manifold = true
		for _, key := range []string{"name", "cniVersion"} {
			if p[key] != nil {
				v.warn(path+"/"+key, key, "no effect in a list; the list's own key counts")
				delete(p, key)
			}
		}
		v.plugin(path, p)
	}
	if !manifold {
		v.add("/plugins", "plugins", `it has no plugin of type "manifold"`)
	}
}

// named checks for the name that the runtime requires.
func (v *validator) named(path string, keys map[string]json.RawMessage) {
	if keys["name"] == nil || string(keys["name"]) == "null" {
		v.add(path+"/name", "name", "not set, and the runtime refuses a configuration without it")
	}
}

// other checks a plugin that is not Manifold's.
func (v *validator) other(path string, i int, p map[string]json.RawMessage) {
	switch {
	case p == nil:
		v.add(path, fmt.Sprintf("plugins[%d]", i), "not an object")
	case StringValue(p["type"]) == "":
		v.add(path+"/type", "type", "not set; give the name of the plugin's program")
	}
}

// listKey checks one of the list's own keys, as libcni reads them.
func (v *validator) listKey(key string, raw json.RawMessage) {
	path := "/" + key
	switch key {
	case "plugins":
	case "name", "cniVersion":
		v.check(path, key, raw)
	case "cniVersions":
		v.versions(path, key, raw)
	case "disableCheck", "disableGC", "loadOnlyInlinedPlugins":
		var flag bool
		if word := strings.ToLower(StringValue(raw)); word != "true" && word != "false" && json.Unmarshal(raw, &flag) != nil {
			v.add(path, key, "%.64s is not a boolean", raw)
		}
	default:
		if known, _ := netconf.CheckKey(key, nil); known {
			v.add(path, key, "a key of the plugin, without effect here: move it into the plugin of type manifold")
			return
		}
		v.warn(path, key, "unknown, has no effect")
	}
}

// versions checks the versions that a list offers to the runtime.
func (v *validator) versions(path, key string, raw json.RawMessage) {
	var all []string
	if err := json.Unmarshal(raw, &all); err != nil {
		v.add(path, key, "%v; give a list of CNI versions", err)
		return
	}
	for i, text := range all {
		if _, _, _, err := version.ParseVersion(text); err != nil {
			v.add(fmt.Sprintf("%s/%d", path, i), key, "element %d: %v", i+1, err)
		}
	}
}

// check checks one key by itself, and reports whether it is known and valid.
func (v *validator) check(path, key string, raw json.RawMessage) bool {
	known, err := netconf.CheckKey(key, raw)
	var part *netconf.ValueError
	switch {
	case errors.As(err, &part):
		v.add(path+"/"+part.Path(), key, "%s", explained(err))
	case err != nil:
		v.add(path, key, "%s", explained(err))
	case !known:
		hint := ""
		if as := netconf.KeyInAnyCase(key); as != "" {
			hint = ": the correct spelling is " + as
		}
		v.warn(path, key, "unknown, has no effect%s", hint)
	}
	return known && err == nil
}

// explained returns the cause of an error of [netconf.CheckKey] and the fix, without
// the key.
func explained(err error) string {
	var e *cnierr.Error
	if !errors.As(err, &e) || e.Fix == "" {
		return errors.Unwrap(err).Error()
	}
	return e.Err.Error() + "; " + e.Fix
}

// plugin checks the plugin's own keys at a path, and reports whether the plugin is
// Manifold's.
func (v *validator) plugin(path string, p map[string]json.RawMessage) bool {
	if StringValue(p["type"]) != "manifold" {
		v.add(path+"/type", "type", `it has no plugin of type "manifold"`)
		return false
	}
	right := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(p)) {
		at := path + "/" + key
		right[key] = v.check(at, key, p[key])
		for _, field := range netconf.UnknownFields(key, p[key]) {
			v.warn(at+"/"+field, key, "field %s is unknown, has no effect", field)
		}
	}
	set := func(key string) bool { return isSet(p[key]) }
	if !set("clusterNetwork") && !set("delegates") {
		v.add(path+"/type", "clusterNetwork", `neither "clusterNetwork" nor "delegates" is set; name the cluster default network in clusterNetwork`)
	}
	for _, c := range []struct {
		key       string
		effective bool
		why       string
	}{
		{"delegates", !set("clusterNetwork"), "beside clusterNetwork"},
		{"globalNamespaces", string(p["namespaceIsolation"]) == "true", "without namespaceIsolation"},
		{"logOptions", set("logFile"), "without logFile"},
	} {
		if set(c.key) && right[c.key] && !c.effective {
			v.warn(path+"/"+c.key, c.key, "no effect %s", c.why)
		}
	}
	return true
}

// Document is a configuration file of the plugin, a single configuration or a list.
type Document struct {
	single  bool
	List    map[string]json.RawMessage // the list's own keys; empty for a single configuration
	Plugins []map[string]json.RawMessage
}

// malformed is the cause why a file is no configuration at all.
type malformed struct {
	line int
	key  string // empty for the file as a whole
	err  error
	fix  string
}

func (m *malformed) Error() string {
	if m.key == "" {
		return fmt.Sprintf("line %d: %v", m.line, m.err)
	}
	return fmt.Sprintf("line %d: key %q: %v", m.line, m.key, m.err)
}

// in returns the error of an operation that m has ended.
func (m *malformed) in(op string, kind cnierr.Kind) error {
	return cnierr.New(op, kind, "%w", m).WithFix("%s", m.fix)
}

// ParseDocument takes a configuration file of the plugin apart. op names the operation
// in errors, and so should name the file.
func ParseDocument(op string, raw []byte) (*Document, error) {
	d := &Document{}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		bad := &malformed{line: 1, err: netconf.Mistyped(err, reflect.TypeFor[struct{}]()), fix: "give one plugin's configuration, or a list of them in the key plugins"}
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			bad = &malformed{line: lineAt(raw, syntax.Offset), err: fmt.Errorf("not valid JSON: %w", err), fix: "correct the syntax"}
		}
		return nil, bad.in(op, cnierr.Decode)
	}
	if top["plugins"] == nil {
		d.single, d.List, d.Plugins = true, map[string]json.RawMessage{}, []map[string]json.RawMessage{top}
		return d, nil
	}
	d.List = top
	const key = "plugins"
	var plugins []json.RawMessage
	if err := json.Unmarshal(top[key], &plugins); err != nil {
		bad := &malformed{positionsOf(raw).lines["/"+key], key, netconf.Mistyped(err, reflect.TypeFor[[]struct{}]()), "list the plugins, each with its type"}
		return nil, bad.in(op, cnierr.InvalidConfig)
	}
	d.Plugins = make([]map[string]json.RawMessage, len(plugins))
	for i, plugin := range plugins {
		if err := json.Unmarshal(plugin, &d.Plugins[i]); err != nil {
			err = fmt.Errorf("element %d: %w", i+1, netconf.Mistyped(err, reflect.TypeFor[struct{}]()))
			bad := &malformed{positionsOf(raw).lines[fmt.Sprintf("/%s/%d", key, i)], key, err, "give the plugin as an object with its type"}
			return nil, bad.in(op, cnierr.InvalidConfig)
		}
	}
	return d, nil
}

// lineAt returns the line, from 1, of a byte offset.
func lineAt(raw []byte, offset int64) int {
	return 1 + bytes.Count(raw[:min(int(offset), len(raw))], []byte("\n"))
}

// positions holds the lines of a document's keys and elements, by path, for example
// "/plugins/0/type". twice lists the keys that occur more than once in their object.
type positions struct {
	lines map[string]int
	twice []string
}

// positionsOf returns the positions in a document, as far as it is valid JSON.
func positionsOf(raw []byte) positions {
	w := &lineWalker{raw: raw, d: json.NewDecoder(bytes.NewReader(raw)), positions: positions{lines: map[string]int{}}}
	w.value("")
	return w.positions
}

type lineWalker struct {
	positions
	raw []byte
	d   *json.Decoder
}

// value walks one value, and reports whether it is valid. It must stop at an invalid
// one, after which the decoder's More never ends.
func (w *lineWalker) value(path string) bool {
	token, err := w.d.Token()
	if err != nil {
		return false
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return true
	}
	for i := 0; w.d.More(); i++ {
		element := fmt.Sprintf("%s/%d", path, i)
		line := w.next()
		if delim == '{' {
			key, err := w.d.Token()
			if err != nil {
				return false
			}
			element = path + "/" + fmt.Sprint(key)
			if w.lines[element] > 0 {
				w.twice = append(w.twice, element)
			}
		}
		w.lines[element] = line
		if !w.value(element) {
			return false
		}
	}
	_, err = w.d.Token() // the closing delimiter
	return err == nil
}

// next returns the line of the next key or element.
func (w *lineWalker) next() int {
	at := w.d.InputOffset()
	for int(at) < len(w.raw) && bytes.IndexByte([]byte(" \t\r\n,"), w.raw[at]) >= 0 {
		at++
	}
	return lineAt(w.raw, at)
}
