package inspect

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// redacted stands where a secret was.
const redacted = "REDACTED"

// secretKeys are parts of the names of keys whose values nobody else may see.
var secretKeys = []string{
	"token", "passw", "passphrase", "secret", "credential", "auth", "apikey", "api_key", "api-key", "privatekey", "private_key", "private-key",
	"certificate", "cert-data", "key-data", "kubeconfig", "psk", "community", "cookie",
}

// secretText is what a secret looks like wherever it stands: PEM blocks, bearer
// and JSON web tokens, passwords in addresses, and keys with values in text.
var secretText = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|$)`),
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`),
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{6,}`),
	regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^/\s:@"]*:[^/\s@"]+@`),
	regexp.MustCompile(`(?i)\b[a-z0-9_-]*(token|passw(or)?d|passphrase|secret|api[-_]?key|private[-_]?key|(certificate|key)-data|psk)[a-z0-9_-]*\\*["']?\s*[:=]\s*\\*("[^"\\]*\\*"|'[^'\\]*\\*'|[^\s,;"'}]+)`),
}

// Redact returns a file without its secrets. A JSON document stays one, strings in
// it that are JSON themselves included; every other text loses what looks like a
// secret.
func Redact(raw []byte) []byte {
	if v, ok := decodeJSON(raw); ok {
		var out bytes.Buffer
		e := json.NewEncoder(&out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if e.Encode(redactValue(v)) == nil {
			return out.Bytes()
		}
	}
	return []byte(redactText(string(raw)))
}

// decodeJSON decodes a document that is an object or a list.
func decodeJSON(raw []byte) (any, bool) {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 || trimmed[0] != '{' && trimmed[0] != '[' {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(trimmed))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil || d.More() {
		return nil, false
	}
	return v, true
}

// redactValue redacts a decoded document.
func redactValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if isSecret(key) && holdsText(value) {
				v[key] = redacted
			} else {
				v[key] = redactValue(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = redactValue(v[i])
		}
	case string:
		if inner, ok := decodeJSON([]byte(v)); ok {
			if raw, err := json.Marshal(redactValue(inner)); err == nil {
				return string(raw)
			}
		}
		return redactText(v)
	}
	return v
}

// isSecret reports whether a key names a secret.
func isSecret(key string) bool {
	key = strings.ToLower(key)
	for _, part := range secretKeys {
		if strings.Contains(key, part) {
			return true
		}
	}
	return key == "key" || key == "cert" || key == "ca"
}

// holdsText reports whether a value can be a secret: numbers and switches are not.
func holdsText(v any) bool {
	switch v := v.(type) {
	case string:
		return v != ""
	case map[string]any, []any:
		return true
	}
	return false
}

// redactText takes out of a text what looks like a secret.
func redactText(s string) string {
	for _, pattern := range secretText {
		s = pattern.ReplaceAllString(s, redacted)
	}
	return s
}
