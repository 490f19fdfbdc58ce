package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// Finding is what is wrong with a configuration file.
type Finding struct {
	Line    int    // from 1
	Key     string // empty for the file as a whole
	Text    string
	Warning bool // it has no effect, but harms nothing
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

// ValidateConfig returns what is wrong with a configuration file of the plugin,
// single or list, in order of line.
func ValidateConfig(raw []byte) []Finding {
	doc, err := parseDocument("validate configuration", raw)
	if err != nil {
		var syntax *json.SyntaxError
		line := 1
		if errors.As(err, &syntax) {
			line = lineAt(raw, syntax.Offset)
		}
		return []Finding{{Line: line, Text: err.Error()}}
	}
	at := slices.IndexFunc(doc.plugins, func(p map[string]json.RawMessage) bool { return stringValue(p["type"]) == "manifold" })
	if at < 0 {
		return []Finding{{Line: 1, Text: `it has no plugin of type "manifold"`}}
	}
	lines := keyLines(raw)
	where := func(key string) int {
		if doc.single {
			return lines["/"+key]
		}
		return lines[fmt.Sprintf("/plugins/%d/%s", at, key)]
	}
	var out []Finding
	plugin := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(doc.plugins[at])) {
		value := doc.plugins[at][key]
		known, err := netconf.CheckKey(key, value)
		switch {
		case err != nil:
			out = append(out, Finding{Line: where(key), Key: key, Text: err.Error()})
		case !known:
			out = append(out, Finding{Line: where(key), Key: key, Text: "unknown, has no effect", Warning: true})
		}
		plugin[key] = value
	}
	if len(out) == 0 || !slices.ContainsFunc(out, func(f Finding) bool { return !f.Warning }) {
		if err := netconf.Validate(plugin); err != nil {
			out = append(out, Finding{Line: max(1, where("type")), Text: err.Error()})
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return a.Line - b.Line })
	return out
}

// document is a configuration file, single or list.
type document struct {
	single  bool
	list    map[string]json.RawMessage // the list's own keys; empty for a single configuration
	plugins []map[string]json.RawMessage
}

func parseDocument(op string, raw []byte) (*document, error) {
	d := &document{}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		return nil, cnierr.New(op, cnierr.Decode, "%w", err)
	}
	if top["plugins"] == nil {
		d.single, d.list, d.plugins = true, map[string]json.RawMessage{}, []map[string]json.RawMessage{top}
		return d, nil
	}
	d.list = top
	if err := json.Unmarshal(top["plugins"], &d.plugins); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "key %q: %w", "plugins", err)
	}
	return d, nil
}

// lineAt returns the line, from 1, of a byte offset.
func lineAt(raw []byte, offset int64) int {
	return 1 + bytes.Count(raw[:min(int(offset), len(raw))], []byte("\n"))
}

// keyLines returns the line of every object key of a valid document, by path:
// "/plugins/0/type".
func keyLines(raw []byte) map[string]int {
	w := &lineWalker{raw: raw, d: json.NewDecoder(bytes.NewReader(raw)), lines: map[string]int{}}
	w.value("")
	return w.lines
}

type lineWalker struct {
	raw   []byte
	d     *json.Decoder
	lines map[string]int
}

// value walks one value. Its document was parsed before, so that no token fails.
func (w *lineWalker) value(path string) {
	token, err := w.d.Token()
	if err != nil {
		return
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return
	}
	for i := 0; w.d.More(); i++ {
		element := fmt.Sprintf("%s/%d", path, i)
		if delim == '{' {
			key, err := w.d.Token()
			if err != nil {
				return
			}
			element = path + "/" + strings.TrimSpace(fmt.Sprint(key))
			w.lines[element] = lineAt(w.raw, w.d.InputOffset())
		}
		w.value(element)
	}
	_, _ = w.d.Token() // the closing delimiter
}
