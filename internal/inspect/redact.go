package inspect

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// redacted replaces each secret.
const redacted = "REDACTED"

// secretParts, secretEnds and secretNames tell the keys whose values are secret: those
// that contain one of the parts, end in one of the ends, or are one of the names.
var (
	secretParts = []string{
		"token", "passw", "passphrase", "pass_phrase", "pass-phrase", "pwd", "secret", "credential", "auth", "apikey", "api_key", "api-key", "preshared", "pre_shared", "pre-shared",
		"certificate", "cert-data", "key-data", "keydata", "privatekey", "private_key", "private-key", "kubeconfig", "psk", "community", "cookie",
	}
	secretEnds  = []string{"key", "pass"}
	secretNames = []string{"cert", "ca", "cak", "pin"}
)

// partition is the key of an InfiniBand partition, which is not a secret.
const partition = "pkey"

// secretText matches secrets by their form, whatever their key: PEM blocks, including
// those cut off at one end or encoded in base64, bearer tokens and JSON web tokens, and
// the user information in URLs.
var secretText = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|$)`),
	regexp.MustCompile(`[A-Za-z0-9+/=\\\s]*-----END [A-Z0-9 ]+-----`),
	regexp.MustCompile(`LS0tLS1CRUdJT[A-Za-z0-9+/=_-]*`), // it begins with -----BEGIN
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`),
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{6,}`),
	regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^/\s"']+@`),
}

// redact returns a file without its secrets. A JSON document stays valid JSON, including
// strings in it that are JSON themselves. Any other text loses everything that looks like
// a secret.
func redact(raw []byte) []byte {
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

// decodeJSON decodes a document that is an object or an array.
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
		name, _ := v["name"].(string) // environment variables have the name beside the value
		for key, value := range v {
			if (isSecret(key) || key == "value" && isSecret(name)) && canBeSecret(value) {
				v[key] = redacted
			} else {
				v[key] = redactValue(value)
			}
		}
	case []any:
		for i := range v {
			if i > 0 && isFlag(v[i-1]) && canBeSecret(v[i]) {
				v[i] = redacted
			} else {
				v[i] = redactValue(v[i])
			}
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

// isFlag reports whether v is a command-line flag whose value, the next argument, is
// secret.
func isFlag(v any) bool {
	text, _ := v.(string)
	name, long := strings.CutPrefix(text, "--")
	return long && isSecret(name)
}

// isSecret reports whether the value of a key is secret.
func isSecret(key string) bool {
	key = strings.ToLower(key)
	if key == partition {
		return false
	}
	return slices.Contains(secretNames, key) ||
		slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(key, part) }) ||
		slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(key, end) })
}

// canBeSecret reports whether a value can be a secret. Booleans and empty values cannot.
func canBeSecret(v any) bool {
	_, isSwitch := v.(bool)
	return v != nil && v != "" && !isSwitch
}

// redactText replaces what looks like a secret in a text, and the values of keys that
// name a secret.
func redactText(s string) string {
	for _, pattern := range secretText {
		s = pattern.ReplaceAllString(s, redacted)
	}
	for _, pattern := range named {
		s = redactNamed(s, pattern)
	}
	return s
}

// named match the ways in which a text names a value, up to the value: a key and its
// separator, a command-line flag, a name beside its value. The first group is the name.
var named = []*regexp.Regexp{
	regexp.MustCompile(`([A-Za-z0-9_.-]+)\\*["']?[ \t]*[:=][ \t]*`),
	regexp.MustCompile(`--([A-Za-z0-9_-]+)\\*["']?[ \t,]+`),
	regexp.MustCompile(`\bname\\*["']?\s*[:=]\s*\\*["']?([A-Za-z0-9_.-]+)\\*["']?[,\s]+\\*["']?value\\*["']?\s*[:=][ \t]*`),
}

// redactNamed redacts the values of secret names that the pattern finds.
func redactNamed(s string, pattern *regexp.Regexp) string {
	var out strings.Builder
	for {
		at := pattern.FindStringSubmatchIndex(s)
		if at == nil {
			out.WriteString(s)
			return out.String()
		}
		end := at[1]
		out.WriteString(s[:end])
		if isSecret(s[at[2]:at[3]]) {
			if end = valueEnd(s, at[0], at[1]); end > at[1] {
				out.WriteString(redacted)
			}
		}
		s = s[end:]
	}
}

// valueEnd returns the index after the value that begins at index at; its key begins at
// index key. The value is a string, list or object of JSON or YAML, quoted to any depth;
// in YAML also a block below the key or the rest of the line; otherwise it is a word.
func valueEnd(s string, key, at int) int {
	if at == len(s) {
		return at
	}
	blank := at + len(blanks.FindString(s[at:]))
	switch {
	case blank == len(s) || s[blank] == '\n':
		if rest := strings.TrimLeft(s[blank:], " \t\r\n"); rest != "" && strings.ContainsRune(`"'[{\`, rune(rest[0])) {
			return valueEnd(s, key, len(s)-len(rest))
		}
		return blockEnd(s, key, blank)
	case quoted(s, at) > 0:
		return stringEnd(s, at)
	case s[at] == '[' || s[at] == '{':
		return bracketEnd(s, at)
	case strings.Trim(s[strings.LastIndexByte(s[:key], '\n')+1:key], " \t-") == "" && strings.Contains(s[key:at], ":"):
		line, _, _ := strings.Cut(s[at:], "\n") // a value of YAML or of a header, which may contain blanks
		return blockEnd(s, key, at+len(line))   // and the lines indented below: this line may be the head of a block
	}
	return at + len(word.FindString(s[at:]))
}

// blanks matches what YAML has between the key of a block and the end of its line. word
// matches a value without delimiters.
var (
	blanks = regexp.MustCompile(`^[|>+ \t\r-]*`)
	word   = regexp.MustCompile(`^[^\s,;"'})\]]*`)
)

// quoted returns the length of the quote at an index, including the backslashes before a
// quote in quoted text; 0 if there is none.
func quoted(s string, at int) int {
	n := at
	for n < len(s) && s[n] == '\\' {
		n++
	}
	if n < len(s) && (s[n] == '"' || s[n] == '\'') {
		return n + 1 - at
	}
	return 0
}

// stringEnd returns the index after the string that opens at index at, or the length of
// the text if the string is not closed. Before the closing quote, the backslashes that
// belong to the string come in pairs.
func stringEnd(s string, at int) int {
	depth := quoted(s, at) // 1 for a plain quote, 2 for one behind a backslash, 4 for the next level, and so on
	quote := s[at+depth-1]
	for i, run := at+depth, 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			run++
			continue
		case s[i] == quote && quote == '\'' && i+1 < len(s) && s[i+1] == quote:
			i++ // YAML doubles a quote to write it in a string
		case s[i] == quote && run >= depth-1 && (run-depth+1)%(2*depth) == 0:
			return i + 1
		}
		run = 0
	}
	return len(s)
}

// bracketEnd returns the index after the list or object that begins at index at.
func bracketEnd(s string, at int) int {
	open := 0
	for i := at; i < len(s); i++ {
		switch {
		case s[i] == '[' || s[i] == '{':
			open++
		case s[i] == ']' || s[i] == '}':
			if open--; open == 0 {
				return i + 1
			}
		case quoted(s, i) > 0:
			i = stringEnd(s, i) - 1
		}
	}
	return len(s)
}

// blockEnd returns the index after the lines from at on that belong to a key: those that
// are indented further, and the elements of a list.
func blockEnd(s string, key, at int) int {
	line := s[strings.LastIndexByte(s[:key], '\n')+1 : key]
	own := len(line) - len(strings.TrimLeft(line, " -")) // the mark of a list's element counts as indentation
	for at < len(s) {
		line, _, _ := strings.Cut(s[at+1:], "\n")
		text := strings.TrimSpace(line)
		if text != "" && indent(line) <= own && !(strings.HasPrefix(text, "- ") && indent(line) == own) {
			break
		}
		at += 1 + len(line)
	}
	return at
}

// indent returns the number of spaces that a line is indented by.
func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
