package netattach

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
)

// maxDepth is the deepest nesting of a JSON document that is accepted.
const maxDepth = 64

// decodeJSON decodes a JSON document from a user into v. It refuses trailing data and
// nesting deeper than maxDepth.
func decodeJSON(data []byte, v any) error {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case !inString && (c == '{' || c == '['):
			if depth++; depth > maxDepth {
				return fieldError("", "nested deeper than %d", maxDepth)
			}
		case !inString && (c == '}' || c == ']'):
			depth--
		}
	}
	return json.Unmarshal(data, v)
}

// isObject reports whether raw is a JSON object.
func isObject(raw json.RawMessage) bool {
	t := bytes.TrimSpace(raw)
	return len(t) > 0 && t[0] == '{'
}

// checkName refuses what is not a DNS-1123 subdomain: labels of lower-case letters,
// digits and '-', joined by dots.
func checkName(field, s string) error {
	if len(s) > 253 {
		return fieldError(field, "%s is longer than 253", clip(s))
	}
	for _, label := range strings.Split(s, ".") {
		if err := checkLabel(field, label); err != nil {
			return fieldError(field, "%s is not a name of lower-case letters, digits, '-' and '.'", clip(s))
		}
	}
	return nil
}

// checkLabel refuses what is not a DNS-1123 label.
func checkLabel(field, s string) error {
	bad := len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-'
	for i := 0; i < len(s) && !bad; i++ {
		c := s[i]
		bad = (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
	}
	if bad {
		return fieldError(field, "%s is not a name of at most 63 lower-case letters, digits and '-'", clip(s))
	}
	return nil
}

// checkInterface refuses a name that the kernel does not accept for an interface
// (dev_valid_name in net/core/dev.c) or does not keep as written: "net%d" would become
// the next free name, which nobody would find again. It also refuses control
// characters, and all and default, which name settings beside interfaces.
func checkInterface(field, s string) error {
	if len(s) == 0 || len(s) > 15 {
		return fieldError(field, "%s is not 1 to 15 bytes long", clip(s))
	}
	if s == "." || s == ".." || s == "all" || s == "default" {
		return fieldError(field, "%s is not allowed", clip(s))
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			return fieldError(field, "%s has a character that interface names cannot have", clip(s))
		}
	}
	return nil
}

// checkIP refuses what is neither an address nor an address with prefix length.
func checkIP(field, s string) error {
	if _, err := netip.ParsePrefix(s); err == nil {
		return nil
	}
	if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
		return fieldError(field, "%s is neither an IP address nor an address with prefix length", clip(s))
	}
	return nil
}

// checkHardware refuses what is not a hardware address of n bytes.
func checkHardware(field, s string, n int) error {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != n {
		return fieldError(field, "%s is not an address of %d bytes in hexadecimal, separated by ':'", clip(s), n)
	}
	return nil
}
