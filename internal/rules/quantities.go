package rules

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/json" // key names are exact, as at the API server
)

// DecodePod decodes a pod from JSON. It refuses a quantity like 1e-99999999 first,
// because decoding one takes minutes. The API server has rounded what it sends, but
// others can reach the webhook, and anybody can write a manifest.
func DecodePod(raw []byte) (*corev1.Pod, error) {
	if suspicious.Match(raw) {
		if err := quantities(stdjson.NewDecoder(bytes.NewReader(raw)), reflect.TypeFor[corev1.Pod]()); err != nil {
			return nil, err
		}
	}
	pod := &corev1.Pod{}
	return pod, json.Unmarshal(raw, pod)
}

// suspicious matches where there may be a minute quantity. It matches nowhere in most
// pods, which are therefore read once. minute matches a whole quantity with such an
// exponent, of four digits or more.
var (
	suspicious = regexp.MustCompile(`[0-9.][eE]-[0-9]{4}`)
	minute     = regexp.MustCompile(`^"?\s*[+-]?[0-9.]+[eE]-[0-9]{4,}\s*"?$`)
)

// quantities refuses a minute number in the JSON of a value of type typ, wherever the
// type has a quantity; the same text is fine in an annotation or in an environment
// variable. It reads the JSON rather than the decoded value, because both values of a
// duplicate key are decoded. It skips what does not match the type and leaves it to the
// decoder, so the types bound the recursion.
func quantities(d *stdjson.Decoder, typ reflect.Type) error {
	for typ != nil && typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	opens := opening(typ)
	if opens == 0 {
		var value stdjson.RawMessage
		err := d.Decode(&value)
		if err == nil && typ == quantity && minute.Match(value) {
			return fmt.Errorf("%.40q is too small for a quantity", bytes.Trim(value, `"`))
		}
		return err
	}
	begin, err := d.Token()
	if delim, ok := begin.(stdjson.Delim); err != nil || !ok {
		return err
	} else if delim != opens {
		typ = nil
	}
	for d.More() {
		elem := typ
		if begin == stdjson.Delim('{') {
			key, err := d.Token()
			if err != nil {
				return err
			}
			elem = member(typ, key)
		} else if typ != nil {
			elem = typ.Elem()
		}
		if err := quantities(d, elem); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing delimiter
	return err
}

var quantity = reflect.TypeFor[resource.Quantity]()

// opening returns the delimiter that opens the JSON of a value that may contain
// quantities; 0 for other types, and for a quantity itself.
func opening(typ reflect.Type) stdjson.Delim {
	switch {
	case typ == nil, typ == quantity:
		return 0
	case typ.Kind() == reflect.Struct, typ.Kind() == reflect.Map:
		return '{'
	case typ.Kind() == reflect.Slice:
		return '['
	}
	return 0
}

// member returns the type of a key's value in an object of type typ; nil if typ has no
// such key.
func member(typ reflect.Type, key stdjson.Token) reflect.Type {
	switch {
	case typ == nil:
		return nil
	case typ.Kind() == reflect.Map:
		return typ.Elem()
	}
	for _, f := range reflect.VisibleFields(typ) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name == key {
			return f.Type
		}
	}
	return nil
}
