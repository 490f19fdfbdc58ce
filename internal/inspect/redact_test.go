package inspect

import (
	"encoding/json"
	"strings"
	"testing"
)

// secret is in each of secretive, under a key or in a form that marks it as secret.
const secret = "hunter2xyz"

// secretive are texts that contain a secret, each with a part that must stay.
var secretive = map[string]struct{ in, keeps string }{
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

	"a secret that ends":     {`{"mtu": 9000, "password": "hunter2xyz`, "9000"},
	"keys of ciphers":        {`{"preSharedKey": "hunter2xyz", "ssh-key": "hunter2xyz", "cak": "hunter2xyz", "pkey": "0x8001"}`, "0x8001"},
	"short names":            {`{"pass": "hunter2xyz", "pwd": "hunter2xyz", "bypassed": 1}`, "bypassed"},
	"a name and its value":   {`{"env": [{"name": "DB_PASSWORD", "value": "hunter2xyz"}, {"name": "MTU", "value": "9000"}]}`, "9000"},
	"the same in YAML":       {"env:\n- name: TOKEN\n  value: hunter2xyz\n- name: MTU\n  value: 9000\n", "9000"},
	"no JSON any more":       {`{"authKey": "hunter2xyz", "community": "hunter2xyz",, "mtu": 9000}`, "9000"},
	"an object in that":      {`{"secret": {"a": ["hunter2xyz"]},, "mtu": 9000}`, "9000"},
	"a list in that":         {`{"tokens": ["]", "hunter2xyz"],, "mtu": 9000}`, "9000"},
	"over two lines":         {"{\"password\":\n  \"hunter2xyz\",, \"mtu\": 9000}", "9000"},
	"an escape":              {`{"level":"ERROR","err":"{\"password\":\"a\\u0026hunter2xyz\",\"mtu\":9000}"} and`, "9000"},
	"a quote":                {`x {"password":"a\"hunter2xyz","mtu":9000} y`, "9000"},
	"a quote in the quoted":  {`msg="{\"password\":\"a\\\"hunter2xyz\",\"mtu\":9000}"`, "9000"},
	"a backslash at its end": {`x {"password":"hunter2xyz\\","mtu":9000} y`, "9000"},
	"a quote in YAML":        {"password: 'it''s hunter2xyz'\nmtu: 9000\n", "9000"},
	"a line of YAML":         {"  password: correct hunter2xyz\n  mtu: 9000\n", "9000"},
	"a block of YAML":        {"token: |\n  hunter2xyz\n  hunter2xyz\nmtu: 9000\n", "9000"},
	"a block that says how":  {"a:\n  token: !!binary |2 # of\n      hunter2xyz\n  mtu: 9000\n", "9000"},
	"a line that goes on":    {"password: correct\n  hunter2xyz\nmtu: 9000\n", "9000"},
	"a list of YAML":         {"- tokens:\n  - hunter2xyz\n- mtu: 9000\n", "9000"},
	"a flag":                 {"exec plugin --auth-token hunter2xyz --mtu 9000: exit status 1", "--mtu 9000"},
	"a token in a URL":       {"HTTPS://hunter2xyz@host/path", "host/path"},
	"a flag in a list":       {`{"args": ["--auth-token", "hunter2xyz", "--mtu", "9000"]}`, "9000"},
	"such a list in a log":   {`exec ["plugin" "--auth-token" "hunter2xyz" "--mtu" "9000"]`, `"--mtu" "9000"`},
	"PEM in base64":          {`{"clientKeyData": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCmh1bnRlcjJ4eXo=hunter2xyz", "mtu": 9000}`, "9000"},
	"a URL with an at sign":  {"proxy http://user:p@hunter2xyz@host/path", "host/path"},
	"a query of a URL":       {"GET https://host/path?mtu=9000&access_token=hunter2xyz&x=1", "mtu=9000"},
	"a header in a list":     {`{"headers": ["X-Api-Key: hunter2xyz", "mtu: 9000"]}`, "9000"},
	"basic in a list":        {`{"headers": ["Authorization", "Basic aHVudGVyMg==hunter2xyz"], "mtu": 9000}`, "9000"},
	"a pass phrase":          {`{"passPhrase": "hunter2xyz", "pass_phrase": "hunter2xyz", "mtu": 9000}`, "9000"},
	"private":                {`{"private_key_pem": "hunter2xyz", "privateKeyBase64": "hunter2xyz", "mtu": 9000}`, "9000"},
	"PEM in base64, YAML":    {"a:\n  client_key_b64: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCmh1bnRlcjJ4eXo=hunter2xyz\n  mtu: 9000\n", "9000"},
	"the end of a PEM block": {"hunter2xyz\n-----END PRIVATE KEY-----\nafter", "after"},
}

// No secret survives, and what surrounds it stays.
func TestRedact(t *testing.T) {
	for name, c := range secretive {
		t.Run(name, func(t *testing.T) {
			out := string(redact([]byte(c.in)))
			if strings.Contains(out, secret) || !strings.Contains(out, redacted) || !strings.Contains(out, c.keeps) {
				t.Errorf("%s\nbecame\n%s", c.in, out)
			}
		})
	}
	for _, harmless := range []string{
		`pod default/app network fast: VF 3 of 0000:21:00.0, key 5`,
		`{"time":"2026-01-02T03:04:05Z","level":"ERROR","msg":"failed","pod":"default/app","error":"pod default/app: run delegate bridge: \"br0\": exists"}` + "\n",
		"time=2026-01-02T03:04:05Z level=INFO msg=done verb=ADD took=1.5ms\n",
	} {
		if out := string(redact([]byte("log: " + harmless))); out != "log: "+harmless {
			t.Errorf("%q became %q", harmless, out)
		}
	}
}

// A number can be a secret; a boolean cannot.
func TestRedactNumbers(t *testing.T) {
	if out := string(redact([]byte(`{"password": 12345678, "auth": true, "mtu": 9000}`))); strings.Contains(out, "12345678") || !strings.Contains(out, "true") || !strings.Contains(out, "9000") {
		t.Error(out)
	}
}

// FuzzRedactSecrets: a secret is removed whatever surrounds it in its value, and however
// often the document is quoted or broken.
func FuzzRedactSecrets(f *testing.F) {
	f.Add("a&", `"`, uint8(0), "")
	f.Add(`\`, `\`, uint8(1), ",}")
	f.Add("'", "]\n", uint8(2), "x")
	f.Fuzz(func(t *testing.T, before, after string, depth uint8, broken string) {
		raw, err := json.Marshal(map[string]any{"mtu": 9000, "password": before + secret + after})
		for range depth % 3 {
			if err == nil {
				raw, err = json.Marshal(map[string]any{"level": "ERROR", "err": "refused: " + string(raw)})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		in := string(raw) + strings.ReplaceAll(broken, secret, "")
		if out := string(redact([]byte(in))); strings.Contains(out, secret) {
			t.Errorf("%s\nbecame\n%s", in, out)
		}
	})
}

func FuzzRedact(f *testing.F) {
	for _, c := range secretive {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, isJSON := decodeJSON(in)
		if out := redact(in); isJSON && !json.Valid(out) {
			t.Errorf("%q became %q", in, out)
		}
	})
}
