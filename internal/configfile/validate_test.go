package configfile

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/netconf"
)

// places returns the findings in a file as "line:kind key".
func places(in string) []string { return placesOf(ValidatePlugin([]byte(in))) }

func placesOf(found []Finding) []string {
	var out []string
	for _, f := range found {
		kind := "error"
		if f.Warning {
			kind = "warning"
		}
		out = append(out, fmt.Sprintf("%d:%s %s", f.Line, kind, f.Key))
	}
	return out
}

// broken are wrong values of the keys: too short, an impossible path or name, a number
// out of range. Values of wrong types are added by type.
var broken = map[string][]string{
	"cniVersion": {`"9.9.9"`, `"1.0"`, `""`}, "name": {`""`, `"a/b"`, `"-a"`}, "type": {`""`, `"manifoldd"`},
	"clusterNetwork":  {`"a b"`, `"a@eth0"`, `"a/b/c"`, `"../net.d"`},
	"defaultNetworks": {`[""]`, `["a","[{"]`, `["a,b"]`, `["a@"]`, `["a@x/y"]`, `["a@net%d"]`, `["Upper/a"]`, `["a/b/c"]`, `[{"name":"a"}]`},
	"delegates":       {`[null,3]`, `[{"type":"a"},3]`, `[{}]`, `[{"type":7}]`, `[{"plugins":[]}]`, `[{"plugins":[{}]}]`, `[{"plugins":3}]`, `[]`},
	"capabilities":    {`{"portMappings":"yes"}`},
	"confDir":         {`""`, `"net.d"`}, "cniDir": {`""`, `"./state"`}, "binDir": {`""`, `"bin"`}, "sysRoot": {`""`, `"sys"`}, "deviceInfoDir": {`""`, `"devinfo"`},
	"agentProgram": {`""`, `"manifold-agent"`}, "agentConfig": {`""`, `"agent.json"`}, "agentSocket": {`""`, `"agent.sock"`, `"/` + strings.Repeat("s", 107) + `"`},
	"logFile": {`"manifold.log"`}, "readinessindicatorfile": {`"ready"`}, "releaseOnly": {`"net.d/a.conflist"`}, "auxiliaryCNIChainName": {`"../chain"`, `"/chain"`, `"."`},
	"multusNamespace": {`""`, `"Kube-System"`, `"a.b"`}, "systemNamespaces": {`[""]`, `["a","B"]`}, "globalNamespaces": {`"a,B"`, `"a/b"`},
	"logOptions": {`{"maxSize":-1}`, `{"maxAge":"5"}`, `{"maxBackups":1.5}`, `{"compress":1}`},
}

// wrongTypes returns values that no key of a type accepts.
func wrongTypes(t reflect.Type) []string {
	all := map[reflect.Kind]string{reflect.String: `"x"`, reflect.Bool: `true`, reflect.Int: `7`, reflect.Slice: `["x"]`, reflect.Map: `{"x":"y"}`}
	kind := t.Kind()
	switch {
	case t == reflect.TypeFor[netconf.Duration]():
		return []string{`true`, `7`, `["1s"]`, `{}`, `""`, `"soon"`, `"0s"`, `"-1s"`, `"2h"`, `"30"`}
	case kind == reflect.Struct:
		kind = reflect.Map
	}
	delete(all, kind)
	var out []string
	for _, k := range []reflect.Kind{reflect.String, reflect.Bool, reflect.Int, reflect.Slice, reflect.Map} {
		if all[k] != "" {
			out = append(out, all[k])
		}
	}
	return out
}

// TestEveryKeyIsValidatedByLineAndKey breaks each key of the reference in each way that
// its type and its meaning allow, in a list and in a single configuration.
func TestEveryKeyIsValidatedByLineAndKey(t *testing.T) {
	conf := reflect.TypeFor[netconf.Conf]()
	for i := range conf.NumField() {
		field := conf.Field(i)
		key := field.Tag.Get("json")
		values := append(wrongTypes(field.Type), broken[key]...)
		if field.Tag.Get("enum") != "" {
			values = append(values, `"sometimes"`)
		}
		if form := field.Tag.Get("form"); form != "" && broken[key] == nil {
			t.Errorf("key %s has the form %s, and nothing here breaks it", key, form)
		}
		for _, value := range values {
			for _, single := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %.40s single=%v", key, value, single), func(t *testing.T) { breaks(t, key, value, single) })
			}
		}
	}
}

// breaks fails unless the one error of a configuration with a wrong value is at the
// line of its key.
func breaks(t *testing.T, key, value string, single bool) {
	t.Helper()
	in, want := with(key, value, single)
	found := 0
	for _, f := range ValidatePlugin([]byte(in)) {
		at := f.Key == key && (f.Line == want || f.Line == want+1) // the value begins in the line after its key
		switch {
		case f.Warning: // of keys that need other keys
		case at, key == "delegates" && f.Key == "clusterNetwork": // an empty list does not count
			found++
		case key == "type" && f.Key == "plugins": // then no plugin is Manifold's
		default:
			t.Errorf("found %s in\n%s", f, in)
		}
	}
	if found != 1 && (key != "type" || single) {
		t.Errorf("%d errors at line %d, key %s, of\n%s", found, want, key, in)
	}
}

// with returns a configuration that is valid but for one key, and that key's line.
func with(key, value string, single bool) (in string, line int) {
	list := map[string]string{"cniVersion": `"1.1.0"`, "name": `"manifold"`}
	plugin := []string{`"type": "manifold"`, `"clusterNetwork": "net"`}
	own := []string{fmt.Sprintf(`"cniVersion": %s`, list["cniVersion"]), fmt.Sprintf(`"name": %s`, list["name"])}
	switch {
	case single:
		plugin = append(own, plugin...)
	case list[key] != "": // a key of the list
		list[key] = value
		line = map[string]int{"cniVersion": 2, "name": 3}[key]
	}
	if line == 0 {
		plugin = slices.DeleteFunc(plugin, func(l string) bool {
			return strings.HasPrefix(l, `"`+key+`"`) || key == "delegates" && strings.HasPrefix(l, `"clusterNetwork"`)
		})
		plugin = append(plugin, fmt.Sprintf("%q:\n %s", key, value))
	}
	in = "{\n" + strings.Join(plugin, ",\n") + "\n}"
	if single {
		return in, 1 + len(plugin)
	}
	if line == 0 {
		line = 5 + len(plugin)
	}
	return fmt.Sprintf("{\n\"cniVersion\": %s,\n\"name\": %s,\n\"plugins\": [\n%s]}", list["cniVersion"], list["name"], in), line
}

// TestValidatePluginLooksAtTheWholeFile: mistakes outside the plugin's own keys are
// found.
func TestValidatePluginLooksAtTheWholeFile(t *testing.T) {
	const ours = `{"type":"manifold","clusterNetwork":"a"}`
	list := func(keys string) string { return "{\n" + keys + ",\n\"plugins\": [" + ours + "]}" }
	named := func(keys string) string { return list(`"name": "m",` + "\n" + keys) }
	for in, want := range map[string][]string{
		"{\n\"type\": \"manifold\",\n}": {"3:error "},
		"{\"plugins\": [\nx]}":          {"2:error "},
		"[]":                            {"1:error "},
		"3":                             {"1:error "},
		"null":                          {"1:error type"},
		`{"type":"bridge"}`:             {"1:error type"},
		"{\n\"name\": \"m\",\n\"type\": \"manifold\"}":                   {"3:error clusterNetwork"},
		list(`"cniVersion": "1.1.0"`):                                    {"1:error name"},
		list(`"name": null`):                                             {"2:error name"},
		list(`"name": ""`):                                               {"2:error name"},
		named(`"cniVersion": "9.9.9"`):                                   {"3:error cniVersion"},
		named(`"cniVersion": 7`):                                         {"3:error cniVersion"},
		named(`"cniVersions": "1.1.0"`):                                  {"3:error cniVersions"},
		named("\"cniVersions\": [\"1.1.0\",\n\"x\"]"):                    {"4:error cniVersions"},
		named(`"disableCheck": "maybe"`):                                 {"3:error disableCheck"},
		named(`"disableGC": 1`):                                          {"3:error disableGC"},
		named(`"disableCheck": "true"`):                                  nil,
		named(`"colour": 1`):                                             {"3:warning colour"},
		named(`"namespaceIsolation": true`):                              {"3:error namespaceIsolation"},
		"{\"name\": \"m\",\n\"plugins\": 3}":                             {"2:error plugins"},
		"{\"name\": \"m\",\n\"plugins\": []}":                            {"2:error plugins"},
		"{\"name\": \"m\",\n\"plugins\": [" + ours + ",\nnull]}":         {"3:error plugins[1]"},
		"{\"name\": \"m\",\n\"plugins\": [" + ours + ",\n{}]}":           {"3:error type"},
		"{\"name\": \"m\",\n\"plugins\": [" + ours + ",\n" + ours + "]}": {"3:error type"},
	} {
		if got := places(in); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// A file that is no configuration at all is named with the line and the key, what is
// there, what it takes, and what to do; the words are those of the validation.
func TestUnreadableDocument(t *testing.T) {
	for in, want := range map[string]string{
		"{\n\"type\": \"manifold\",\n}": "read /x: line 3: not valid JSON: invalid character '}' looking for beginning of object key string; correct the syntax",
		"":                              "read /x: line 1: not valid JSON: unexpected end of JSON input; correct the syntax",
		"\n\"a\"":                       "read /x: line 1: a string is given; it takes an object; give one plugin's configuration, or a list of them in the key plugins",
		"{\n\"name\": \"m\",\n\"plugins\": \"bridge\"}":                               `read /x: line 3: key "plugins": a string is given; it takes a list of objects; list the plugins, each with its type`,
		"{\n\"name\": \"m\", \"plugins\": [\n{\"type\": \"manifold\"},\n\"bridge\"]}": `read /x: line 4: key "plugins": element 2: a string is given; it takes an object; give the plugin as an object with its type`,
	} {
		_, err := ParseDocument("read /x", []byte(in))
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n%v, want\n%s", in, err, want)
		}
		found := ValidatePlugin([]byte(in))
		if len(found) != 1 || !strings.HasSuffix(want, found[0].Text) || !strings.Contains(want, fmt.Sprintf("line %d: ", found[0].Line)) {
			t.Errorf("%s: %v", in, found)
		}
	}
}

// Some keys of the configuration are no mistake for what the rest of it is without. What
// is wrong in them is found as in the whole file.
func TestValidateKeysMissesNothing(t *testing.T) {
	for in, want := range map[string][]string{
		"{}":                                 nil,
		`{"verify": "off"}`:                  nil,
		`{"delegates": [{"type":"a"}]}`:      nil,
		`{"plugins": [{"type":"manifold"}]}`: nil,
		"{\n\"verifi\": \"off\"}":            {"2:warning verifi"},
		"{\n\"Verify\": \"off\", \n\"logOptions\": {\"maxSizes\": 1}}": {"2:warning Verify", "3:warning logOptions", "3:warning logOptions"},
		"{\"name\": 7}":                {"1:error name"},
		"{\"verify\":\n\"sometimes\"}": {"1:error verify"},
		"{\"plugins\": [{\"type\":\"manifold\"}],\n\"namespaceIsolation\": true}": {"2:error namespaceIsolation"},
		`{"type": "bridge"}`: {"1:error type"},
		"null":               {"1:error type"},
		"{\n":                {"2:error "},
	} {
		if got := placesOf(ValidateKeys([]byte(in))); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestValidatePluginSaysWhatHasNoEffect(t *testing.T) {
	in := `{
  "name": "m", "cniVersion": "1.1.0",
  "plugins": [
    {"type": "portmap"},
    {
      "type": "manifold", "name": "own",
      "clusterNetwork": "flannel",
      "delegates": [{"type": "a"}],
      "verify": "sometimes",
      "colour": {"verify": 1},
      "globalNamespaces": "a",
      "logfile": "/var/log/manifold.log",
      "logOptions": {"maxSize": 1,
        "maxSizes": 2},
      "runtimeConfig": 7,
      "defaultNetworks": [
        "a",
        "b c"],
      "verify": "off",
      "namespaceIsolation": "yes"
    }
  ]
}`
	want := []string{
		"6:warning name", "8:warning delegates", "10:warning colour", "11:warning globalNamespaces", "12:warning logfile", "13:warning logOptions", "14:warning logOptions",
		"15:error runtimeConfig", "18:error defaultNetworks", "19:warning verify", "20:error namespaceIsolation",
	}
	if got := places(in); !slices.Equal(got, want) {
		t.Errorf("%q,\nwant %q", got, want)
	}
}

func FuzzValidatePlugin(f *testing.F) {
	for _, in := range []string{
		`{"type":"manifold","name":"m","clusterNetwork":"a"}`, `{"name":"m","plugins":[null,{"type":"manifold","delegates":[null,3],"logOptions":{"a":1}}]}`,
		`{"plugins":3,"":{"":[]}}`, "{\n\"a/b\": 1,\n\"a/b\": [2]}", `{"type":"manifold","defaultNetworks":["a@","/"]`, "null",
		`{"plugins":[x]}`, `[tru`, `{"a":{"b":[1 2]}}`,
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, finding := range ValidatePlugin([]byte(in)) {
			if finding.Line < 1 || finding.Line > 1+strings.Count(in, "\n") {
				t.Errorf("%s is not in the file", finding)
			}
		}
	})
}
