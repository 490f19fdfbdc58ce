package inspect

import (
	"encoding/json"
	"strings"
	"testing"
)

// secret is in each of files, which has secret parts.
const secret = "hunter2xyz"

// files are texts with a secret, and what must stay of them.
var files = map[string]struct{ in, keeps string }{
	"a key":                {`{"password": "hunter2xyz", "subnet": "10.0.0.0/8"}`, "10.0.0.0/8"},
	"an object":            {`{"auth": {"user": "hunter2xyz"}, "mtu": 9000}`, "9000"},
	"a list":               {`[{"clientSecret": ["hunter2xyz"]}, {"type": "bridge"}]`, "bridge"},
	"JSON in a string":     {`{"config": "{\"api-token\": \"hunter2xyz\", \"type\": \"macvlan\"}"}`, "macvlan"},
	"JSON twice in":        {`{"a": "{\"b\": \"{\\\"psk\\\": \\\"hunter2xyz\\\"}\"}", "c": "kept"}`, "kept"},
	"a large number":       {`{"token": "hunter2xyz", "guid": 12345678901234567890}`, "12345678901234567890"},
	"a PEM block":          {"before\n-----BEGIN RSA PRIVATE KEY-----\nhunter2xyz\n-----END RSA PRIVATE KEY-----\nafter", "after"},
	"half a PEM block":     {"before\n-----BEGIN CERTIFICATE-----\nhunter2xyz\n", "before"},
	"a PEM block in JSON":  {`{"x": "-----BEGIN A-----\nhunter2xyz\n-----END A-----", "y": "kept"}`, "kept"},
	"a bearer token":       {"GET / Authorization: Bearer hunter2xyz status=200", "status=200"},
	"a JSON web token":     {"jwt eyJhbGciOiJub25lIn0.hunter2xyz.hunter2xyz end", "end"},
	"a password in a URL":  {"https://admin:hunter2xyz@host/path", "host/path"},
	"a key in a log":       {`level=ERROR token=hunter2xyz pod=default/app`, "pod=default/app"},
	"JSON in a log":        {`msg="config {\"password\":\"hunter2xyz\",\"mtu\":9000}"`, "9000"},
	"YAML":                 {"client-key-data: hunter2xyz\nserver: https://host\n", "https://host"},
	"a document and more":  {`{"password": "hunter2xyz"} {"mtu": 9000}`, "9000"},
	"a document that ends": {`{"password": "hunter2xyz", "mtu": 9000`, "9000"},
}

// What is said of a file's secret parts, and what must stay.
func TestRedact(t *testing.T) {
	for name, c := range files {
		t.Run(name, func(t *testing.T) {
			out := string(Redact([]byte(c.in)))
			if strings.Contains(out, secret) || !strings.Contains(out, redacted) || !strings.Contains(out, c.keeps) {
				t.Errorf("%s\nbecame\n%s", c.in, out)
			}
		})
	}
	const harmless = `pod default/app network fast: VF 3 of 0000:21:00.0, key 5`
	if out := string(Redact([]byte(harmless))); out != harmless {
		t.Errorf("%q became %q", harmless, out)
	}
}

func FuzzRedact(f *testing.F) {
	for _, c := range files {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, isJSON := decodeJSON(in)
		if out := Redact(in); isJSON && !json.Valid(out) {
			t.Errorf("%q became %q", in, out)
		}
	})
}
