package inspect

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// redacted stands where a secret was.
const redacted = "REDACTED"

// secretParts are parts of the names of keys whose values nobody else may see,
// secretEnds what such names end in, secretNames whole ones.
var (
	secretParts = []string{
		"token", "passw", "passphrase", "pwd", "secret", "credential", "auth", "apikey", "api_key", "api-key", "preshared", "pre_shared", "pre-shared",
		"certificate", "cert-data", "key-data", "kubeconfig", "psk", "community", "cookie",
	}
	secretEnds  = []string{"key", "pass"}
	secretNames = []string{"cert", "ca", "cak", "pin"}
)

// partition is the key of an InfiniBand partition, which is no secret.
const partition = "pkey"

// secretText is what a secret looks like wherever it stands: PEM blocks, also those
// of which one end is cut off, bearer and JSON web tokens, and what stands before
// the host in addresses.
var secretText = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|$)`),
	regexp.MustCompile(`[A-Za-z0-9+/=\\\s]*-----END [A-Z0-9 ]+-----`),
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`),
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{6,}`),
	regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^/\s"'@]+@`),
}

// redact returns a file without its secrets. A JSON document stays one, strings in
// it that are JSON themselves included; every other text loses what looks like a
// secret.
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
		name, _ := v["name"].(string) // as environments are written: a name beside its value
		for key, value := range v {
			if (isSecret(key) || key == "value" && isSecret(name)) && canBeSecret(value) {
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
	if key == partition {
		return false
	}
	return slices.Contains(secretNames, key) ||
		slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(key, part) }) ||
		slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(key, end) })
}

// canBeSecret reports whether a value can be one: switches and nothing are not.
func canBeSecret(v any) bool {
	_, isSwitch := v.(bool)
	return v != nil && v != "" && !isSwitch
}

// redactText takes out of a text what looks like a secret, and the values of keys
// that name one.
func redactText(s string) string {
	for _, pattern := range secretText {
		s = pattern.ReplaceAllString(s, redacted)
	}
	for _, pattern := range named {
		s = redactNamed(s, pattern)
	}
	return s
}

// named are the ways in which a text names a value, up to the value: key and
// separator, the flag of a program, a name beside its value. The first group is the
// name.
var named = []*regexp.Regexp{
	regexp.MustCompile(`([A-Za-z0-9_.-]+)\\*["']?[ \t]*[:=][ \t]*`),
	regexp.MustCompile(`--([A-Za-z0-9_-]+)[ \t]+`),
	regexp.MustCompile(`\bname\\*["']?\s*[:=]\s*\\*["']?([A-Za-z0-9_.-]+)\\*["']?[,\s]+\\*["']?value\\*["']?\s*[:=][ \t]*`),
}

// redactNamed redacts the values of names that a pattern finds.
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

// valueEnd returns where the value ends that begins at an index, of a key that
// begins at another: a string, a list or an object of JSON or YAML, however deep it
// is quoted; of YAML also a block below the key, or the line; else a word.
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
		line, _, _ := strings.Cut(s[at:], "\n") // of YAML, or a header, with blanks in it
		return blockEnd(s, key, at+len(line))   // and what is indented below: the line may be a block's head
	}
	return at + len(word.FindString(s[at:]))
}

// blanks are what YAML has behind the key of a block; word is a value that nothing
// encloses.
var (
	blanks = regexp.MustCompile(`^[|>+ \t\r-]*`)
	word   = regexp.MustCompile(`^[^\s,;"'})\]]*`)
)

// quoted returns the length of the quote at an index, with the backslashes that a
// quote in a quoted text has before it; 0 where there is none.
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

// stringEnd returns where the string ends whose quote is at an index; the end of
// the text when nothing closes it. Of the backslashes before the closing quote
// those that belong to the string are pairs.
func stringEnd(s string, at int) int {
	depth := quoted(s, at) // 1 for a plain quote, 2 for one behind a backslash, 4 and so on
	quote := s[at+depth-1]
	for i, run := at+depth, 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			run++
			continue
		case s[i] == quote && quote == '\'' && i+1 < len(s) && s[i+1] == quote:
			i++ // as YAML writes one in a string
		case s[i] == quote && run >= depth-1 && (run-depth+1)%(2*depth) == 0:
			return i + 1
		}
		run = 0
	}
	return len(s)
}

// bracketEnd returns where the list or object ends that begins at an index.
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

// blockEnd returns where the lines from an index on end that belong to a key: those
// that are indented further, and the elements of a list.
func blockEnd(s string, key, at int) int {
	line := s[strings.LastIndexByte(s[:key], '\n')+1 : key]
	own := len(line) - len(strings.TrimLeft(line, " -")) // also behind the mark of a list's element
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

// indent returns how far a line is indented.
func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
