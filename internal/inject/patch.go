package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
)

// Operation is an operation of a JSON patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"` // always "add"
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// String returns the path and the value.
func (o Operation) String() string {
	raw, err := json.Marshal(o.Value)
	if err != nil { // never for the types that JSON decodes to
		return o.Path
	}
	return o.Path + ": " + string(raw)
}

// document is an object as the API server sent it, with the operations done on it. It
// is changed as JSON, not as a Go type, so that fields which this release does not know
// survive, and the patch contains the intended changes only.
type document struct {
	root map[string]any
	ops  []Operation
}

// add sets the value at a path of keys and indices, or appends it to a list if the path
// ends in "-", like the operation "add". It creates missing parents. value consists of
// the types that JSON decodes to, and int64.
func (d *document) add(value any, path ...string) error {
	at := any(d.root)
	for i, key := range path {
		rest := path[i+1:]
		switch node := at.(type) {
		case map[string]any:
			list, isList := node[key].([]any)
			switch {
			case len(rest) == 0 || node[key] == nil:
				value = wrap(value, rest)
				node[key] = runtime.DeepCopyJSONValue(value)
			case isList && len(rest) == 1 && rest[0] == "-":
				node[key] = append(list, runtime.DeepCopyJSONValue(value))
				i++ // includes the "-"
			default:
				at = node[key]
				continue
			}
			d.ops = append(d.ops, Operation{"add", pointer(path[:i+1]), value})
			return nil
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n < 0 || n >= len(node) {
				return fmt.Errorf("%s: no such element", pointer(path[:i+1]))
			}
			at = node[n]
		default:
			return fmt.Errorf("%s: neither an object nor a list", pointer(path[:i]))
		}
	}
	return fmt.Errorf("%s: an element of a list", pointer(path))
}

// wrap wraps value in the objects, and the one-element list, that are missing along
// path.
func wrap(value any, path []string) any {
	for _, key := range slices.Backward(path) {
		if key == "-" {
			value = []any{value}
		} else {
			value = map[string]any{key: value}
		}
	}
	return value
}

// pointer returns a path as a JSON pointer.
func pointer(path []string) string {
	var b strings.Builder
	for _, key := range path {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key))
	}
	return b.String()
}
