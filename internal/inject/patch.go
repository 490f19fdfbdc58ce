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

// String returns what is set, and where.
func (o Operation) String() string {
	raw, err := json.Marshal(o.Value)
	if err != nil { // of the types that JSON decodes to none
		return o.Path
	}
	return o.Path + ": " + string(raw)
}

// document is an object as the API server sent it, and the operations that were
// done on it. It is changed in its JSON form, not in Go's: fields that this
// release has not heard of are not lost, and the patch names what is meant and
// nothing else.
type document struct {
	root map[string]any
	ops  []Operation
}

// add sets the value at a path of keys and indices, or appends it to a list where
// the path ends in "-", as the operation of that name does. What is missing on the
// way is made. value is made of the types that JSON decodes to, and int64.
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
				i++ // with the "-"
			default:
				at = node[key]
				continue
			}
			d.ops = append(d.ops, Operation{"add", pointer(path[:i+1]), value})
			return nil
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n < 0 || n >= len(node) {
				return fmt.Errorf("%s: there is no such element", pointer(path[:i+1]))
			}
			at = node[n]
		default:
			return fmt.Errorf("%s: it is neither an object nor a list", pointer(path[:i]))
		}
	}
	return fmt.Errorf("%s: it is an element of a list", pointer(path))
}

// wrap makes the objects, and the list of one element, that a missing path has
// around its value.
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

// pointer writes a path as a JSON pointer.
func pointer(path []string) string {
	var b strings.Builder
	for _, key := range path {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key))
	}
	return b.String()
}
