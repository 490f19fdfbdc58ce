package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// ValueError reports that part of a key's value is wrong: an element of a list or a
// field of an object.
type ValueError struct {
	Index int    // of the element, from 0; -1 for a field
	Field string // name of the field
	Err   error
}

// Error returns the cause, preceded by the part that it is about.
func (e *ValueError) Error() string {
	if e.Index >= 0 {
		return fmt.Sprintf("element %d: %v", e.Index+1, e.Err)
	}
	return e.Field + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ValueError) Unwrap() error { return e.Err }

// Path returns the part as a path below the key, for example "0" or "maxSize".
func (e *ValueError) Path() string {
	if e.Index >= 0 {
		return strconv.Itoa(e.Index)
	}
	return e.Field
}

// forms check, by the tag "form" of a key, what the key's type cannot express.
var forms = map[string]func(reflect.Value) error{
	"version":    func(v reflect.Value) error { return checkVersion(v.String()) },
	"name":       func(v reflect.Value) error { return checkNetworkName(v.String()) },
	"path":       func(v reflect.Value) error { return checkPath(v.String()) },
	"file":       func(v reflect.Value) error { return optionally(v.String(), checkPath) },
	"socket":     func(v reflect.Value) error { return checkSocket(v.String()) },
	"chain":      func(v reflect.Value) error { return optionally(v.String(), checkChain) },
	"namespace":  func(v reflect.Value) error { return checkNamespace(v.String()) },
	"namespaces": checkNamespaces,
	"network":    func(v reflect.Value) error { return optionally(v.String(), checkDefault) },
	"networks": func(v reflect.Value) error {
		return checkEach(v, func(e reflect.Value) error { return checkNetwork(e.String()) })
	},
	"configs": func(v reflect.Value) error {
		return checkEach(v, func(e reflect.Value) error { return checkInline(e.Bytes()) })
	},
	"rotation": checkRotation,
}

func optionally(text string, check func(string) error) error {
	if text == "" {
		return nil
	}
	return check(text)
}

func checkEach(list reflect.Value, check func(reflect.Value) error) error {
	for i := range list.Len() {
		if err := check(list.Index(i)); err != nil {
			return &ValueError{Index: i, Err: err}
		}
	}
	return nil
}

func checkVersion(text string) error {
	if supported := version.All.SupportedVersions(); !slices.Contains(supported, text) {
		return fmt.Errorf("%.64q is not one of the CNI versions %s", text, strings.Join(supported, " "))
	}
	return nil
}

func checkNetworkName(text string) error {
	if utils.ValidateNetworkName(text) != nil {
		return fmt.Errorf("%.64q is not a network name: use letters, digits, '.', '_' and '-', starting with a letter or digit", text)
	}
	return nil
}

func checkPath(text string) error {
	if !filepath.IsAbs(text) {
		return fmt.Errorf("%.64q is not an absolute path", text)
	}
	return nil
}

// maxSocket is the longest path of a unix socket that Linux accepts, in bytes.
const maxSocket = 107

func checkSocket(text string) error {
	if len(text) > maxSocket {
		return fmt.Errorf("%d bytes, but the path of a unix socket has at most %d", len(text), maxSocket)
	}
	return checkPath(text)
}

// checkChain refuses a path, which could leave the directory in which it is looked up.
func checkChain(text string) error {
	if text == "." || text != filepath.Base(text) || !filepath.IsLocal(text) {
		return fmt.Errorf("%.64q is a path", text)
	}
	return nil
}

func checkNamespace(text string) error {
	if !isLabel(text) {
		return fmt.Errorf("%.64q is not a namespace", text)
	}
	return nil
}

// checkNamespaces accepts a list or a comma-separated list. Blanks separate nothing.
func checkNamespaces(v reflect.Value) error {
	if v.Kind() != reflect.String {
		return checkEach(v, func(e reflect.Value) error { return checkNamespace(e.String()) })
	}
	for _, part := range strings.Split(v.String(), ",") {
		if err := optionally(strings.TrimSpace(part), checkNamespace); err != nil {
			return err
		}
	}
	return nil
}

func checkNetwork(text string) error {
	_, err := parseNetwork(text)
	return err
}

// checkDefault checks the cluster default network, whose interface the runtime names.
func checkDefault(text string) error {
	n, err := parseNetwork(text)
	if err == nil && n.Interface != "" {
		err = fmt.Errorf("%.64q names an interface, but the runtime names this one", text)
	}
	return err
}

// checkInline checks a network configuration inside Manifold's own, single or list.
func checkInline(raw json.RawMessage) error {
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return fmt.Errorf("%.64s is not an object", raw)
	}
	_, plugins, err := asList(raw)
	if err != nil {
		return err
	}
	if len(plugins) == 0 {
		return errors.New("it has no plugins")
	}
	for i, plugin := range plugins {
		var p struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(plugin, &p); err != nil {
			return fmt.Errorf("plugin %d: %w", i+1, err)
		}
		if p.Type == "" {
			return fmt.Errorf("plugin %d has no type", i+1)
		}
	}
	return nil
}

func checkRotation(v reflect.Value) error {
	for i := range v.NumField() {
		if f := v.Field(i); f.CanInt() && f.Int() < 0 {
			return &ValueError{Index: -1, Field: v.Type().Field(i).Tag.Get("json"), Err: fmt.Errorf("%d is negative", f.Int())}
		}
	}
	return nil
}
