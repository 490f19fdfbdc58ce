package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

const minimal = `{"name":"m","type":"manifold","clusterNetwork":"net"}`

func TestDefaults(t *testing.T) {
	inv, err := Parse(&skel.CmdArgs{StdinData: []byte(minimal), Path: "/a:/opt/cni/bin:/b", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u"})
	if err != nil {
		t.Fatal(err)
	}
	c := inv.Conf
	if c.BinDir != "/opt/cni/bin" || c.Verify != "enforce" || time.Duration(c.DelegateTime) != 90*time.Second || !reflect.DeepEqual(c.SystemNamespaces, []string{"kube-system"}) {
		t.Errorf("%+v", c)
	}
	if !reflect.DeepEqual(inv.Path, []string{"/opt/cni/bin", "/a", "/b"}) {
		t.Errorf("path %v", inv.Path)
	}
	if inv.Pod.String() != "ns/p" || inv.Pod.UID != "u" || len(inv.Warnings) != 0 {
		t.Errorf("%+v", inv)
	}
	again, err := FromRequest(inv.Request())
	if err != nil || !reflect.DeepEqual(again.Conf, inv.Conf) || again.Pod != inv.Pod {
		t.Errorf("the planner reads a different configuration: %+v, %v", again, err)
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(kv string) string { return strings.TrimSuffix(minimal, "}") + "," + kv + "}" }
	for name, tc := range map[string]struct {
		args, stdin string
		kind        cnierr.Kind
		part        string
	}{
		"CNI_ARGS":        {"a", minimal, cnierr.InvalidEnvironment, "KEY=VALUE"},
		"CNI_ARGS no key": {"=b", minimal, cnierr.InvalidEnvironment, "KEY=VALUE"},
		"not JSON":        {"", "{", cnierr.Decode, ""},
		"list":            {"", "[]", cnierr.Decode, ""},
		"no network":      {"", `{"name":"m"}`, cnierr.InvalidConfig, "clusterNetwork"},
		"string":          {"", with(`"verify":1`), cnierr.InvalidConfig, `key "verify": a number is given; it takes a string`},
		"field":           {"", with(`"logOptions":{"maxAge":[]}`), cnierr.InvalidConfig, `key "logOptions": maxAge: an array is given; it takes a whole number`},
		"element":         {"", with(`"delegates":[{"type":"a"},null]`), cnierr.InvalidConfig, `key "delegates": element 2: null is not an object`},
		"empty name":      {"", with(`"name":""`), cnierr.InvalidConfig, `key "name": "" is not a network name`},
		"network":         {"", with(`"defaultNetworks":["a","[{"]`), cnierr.InvalidConfig, `key "defaultNetworks": element 2: "[{" does not name a network; write`},
		"interface":       {"", with(`"defaultNetworks":["a@b c"]`), cnierr.InvalidConfig, `has an invalid interface name`},
		"interfaces":      {"", with(`"defaultNetworks":["a@b@c"]`), cnierr.InvalidConfig, `"a@b@c" has a second @; write`},
		"boolean":         {"", with(`"namespaceIsolation":"x"`), cnierr.InvalidConfig, "boolean"},
		"list of strings": {"", with(`"systemNamespaces":"x"`), cnierr.InvalidConfig, "list of strings"},
		"enum":            {"", with(`"deviceOrder":"size"`), cnierr.InvalidConfig, "address plugin"},
		"duration":        {"", with(`"planTimeout":"soon"`), cnierr.InvalidConfig, `"30s"`},
		"duration zero":   {"", with(`"planTimeout":"0s"`), cnierr.InvalidConfig, "planTimeout"},
		"duration long":   {"", with(`"planTimeout":"2h"`), cnierr.InvalidConfig, "planTimeout"},
		"relative":        {"", with(`"cniDir":"x"`), cnierr.InvalidConfig, "absolute"},
		"attachments":     {"", with(`"cni.dev/valid-attachments":7`), cnierr.Decode, "valid-attachments"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(&skel.CmdArgs{StdinData: []byte(tc.stdin), Args: tc.args})
			if !cnierr.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("error %v, want kind %s with %q", err, tc.kind, tc.part)
			}
		})
	}
}

// Multus reads its logLevel in any case, and treats an empty one as unset.
func TestWordsInAnyCase(t *testing.T) {
	for given, want := range map[string]string{"Debug": "debug", "": "warning", "PANIC": "panic"} {
		inv, err := FromRequest(plan.Request{Config: []byte(strings.TrimSuffix(minimal, "}") + `,"logLevel":"` + given + `"}`)})
		if err != nil || inv.Conf.LogLevel != want {
			t.Errorf("%q: %+v, %v", given, inv, err)
		}
	}
}

func TestUnknownKeysAreWarnedOf(t *testing.T) {
	inv, err := Parse(&skel.CmdArgs{StdinData: []byte(`{"type":"manifold","delegates":[{"type":"a"}],"new":1,"args":{},"prevResult":{},"runtimeConfig":{"a":1}}`)})
	if err != nil || len(inv.Warnings) != 1 || !strings.Contains(inv.Warnings[0], `"new"`) || string(inv.RuntimeConfig["a"]) != "1" {
		t.Errorf("%+v, %v", inv, err)
	}
}

// write writes files into a new directory and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOnDiskOrder(t *testing.T) {
	dir := write(t, map[string]string{
		"10-a.conf": `{"name":"net","type":"single"}`, "20-b.conflist": `{"name":"net","plugins":[{"type":"list"}]}`, "05-broken.conflist": `{`,
		"30-c.json": `{"name":"other","type":"x"}`, "readme.txt": "no",
	})
	files, problems := ReadDir(dir)
	if len(files) != 3 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "05-broken") {
		t.Fatalf("%+v %v", files, problems)
	}
	if f := ByName(files, "net"); f == nil || !f.List {
		t.Errorf("a list comes before a single configuration: %+v", f)
	}
	if ByName(files, "absent") != nil {
		t.Error("found what is not there")
	}
	if files, problems := ReadDir(filepath.Join(dir, "absent")); files != nil || problems != nil {
		t.Errorf("%v %v", files, problems)
	}
}

// This is the look-up order of clusterNetwork and of each element of defaultNetworks
// after the definition.
func TestNetworksOnDiskOrder(t *testing.T) {
	byName := `{"name":"net","plugins":[{"type":"by-name"}]}`
	dir := write(t, map[string]string{"50-net.conflist": byName, "60-Big_net.conf": `{"name":"Big_net","type":"by-odd-name"}`})
	other := write(t, map[string]string{"00-multus.conf": `{"name":"multus-cni-network","type":"multus"}`, "00-self.conflist": `{"name":"m","plugins":[{"type":"manifold"}]}`, "01-lo.conf": `{"name":"lo","type":"loopback"}`, "10-x.conf": `{"name":"x","type":"by-dir"}`, "20-y.conf": `{"name":"y","type":"by-file"}`})
	conf := Conf{ConfDir: dir, Type: "manifold", MultusNamespace: "kube-system"}
	for text, want := range map[string]string{"net": "by-name", "net@if0": "by-name", "Big_net": "by-odd-name", other: "by-dir", filepath.Join(other, "20-y.conf"): "by-file"} {
		n, err := conf.Network(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		files, _ := ReadDir(dir)
		if f, err := conf.Find(n, files); err != nil || !strings.Contains(string(f.Raw), want) {
			t.Errorf("%s: %+v, %v", text, f, err)
		}
		c := conf
		c.ClusterNetwork = text
		if raw, err := c.ClusterDefault(noDefinition); err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s as default network: %s, %v", text, raw, err)
		}
	}
	inline := Conf{Delegates: []json.RawMessage{json.RawMessage(`{"type":"inline"}`)}, ConfDir: dir}
	if raw, err := inline.ClusterDefault(noDefinition); err != nil || !strings.Contains(string(raw), "inline") {
		t.Errorf("%s, %v", raw, err)
	}
	// A namespace means that a definition is meant: no file of that name serves.
	for _, absent := range []string{"nothing", "team/net", "/nonexistent/x", t.TempDir()} {
		c := conf
		c.ClusterNetwork = absent
		if raw, err := c.ClusterDefault(noDefinition); !cnierr.Is(err, cnierr.NotReady) || errors.Is(err, errNotOnDisk) == filepath.IsAbs(absent) {
			t.Errorf("%s: %s, %v", absent, raw, err)
		}
	}
}

// noDefinition is a planner that knows no definition or cannot be asked.
func noDefinition(string, string) (json.RawMessage, error) {
	return nil, cnierr.New("status", cnierr.NotReady, "no such definition")
}

// Given a definition and a file of the same name, the definition is used, as in a plan,
// and with the name that a plan gives it.
func TestClusterDefaultOfTwo(t *testing.T) {
	dir := write(t, map[string]string{"50-net.conflist": `{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"of-file"}]}`})
	const ofFile, broken = `{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"of-file"}]}`, "it is broken"
	for name, tc := range map[string]struct {
		network, definition string
		err                 error
		want                string
	}{
		"both":                  {"net", `{"name":"x","cniVersion":"0.4.0","plugins":[]}`, nil, `{"name":"x","cniVersion":"0.4.0","plugins":[]}`},
		"without name, version": {"net", `{"plugins":[]}`, nil, `{"name":"net","plugins":[]}`},
		"empty name":            {"team/other", `{"type":"t","name":"","cniVersion":null}`, nil, `{"cniVersion":null,"name":"other","type":"t"}`},
		"no such definition":    {"net", "", cnierr.New("status", cnierr.NotReady, "none"), ofFile},
		"nobody answers":        {"net", "", errors.New("socket"), ofFile},
		"leaves it to a file":   {"net", "", nil, ofFile},
		"of another namespace":  {"team/net", "", nil, ofFile},
		"broken":                {"net", "", cnierr.New("status", cnierr.InvalidDefinition, broken), ""},
		"no object":             {"net", `[]`, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := Conf{ConfDir: dir, Name: "manifold", MultusNamespace: "kube-system", ClusterNetwork: tc.network}
			raw, err := c.ClusterDefault(func(namespace, name string) (json.RawMessage, error) {
				if namespace == "kube-system" && name == "net" || namespace == "team" {
					return json.RawMessage(tc.definition), tc.err
				}
				return nil, fmt.Errorf("the definition %s/%s was requested", namespace, name)
			})
			if string(raw) != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("%s, %v, want %s", raw, err, tc.want)
			}
		})
	}
}

func TestNetworkNames(t *testing.T) {
	conf := Conf{MultusNamespace: "kube-system"}
	for text, want := range map[string]Network{
		"net":                            {Namespace: "kube-system", Name: "net", OnDisk: true},
		"net.d@if0":                      {Namespace: "kube-system", Name: "net.d", OnDisk: true, Interface: "if0"},
		"team/net":                       {Namespace: "team", Name: "net"},
		"team/net@if0":                   {Namespace: "team", Name: "net", Interface: "if0"},
		"/etc/cni/x@y":                   {Path: "/etc/cni/x@y"},
		"/":                              {Path: "/"},
		"":                               {}, // it and all below are refused
		"a/b/c":                          {},
		"/../x/":                         {Path: "/../x/"},
		"../x":                           {},
		"./x":                            {},
		"a,b":                            {},
		"Team/net":                       {},
		"-team/net":                      {},
		"team/":                          {},
		"net@":                           {},
		"net@a b":                        {},
		"net@net%d":                      {},
		"net@all":                        {},
		"net@a@b":                        {},
		`[{"name":"net"}]`:               {},
		strings.Repeat("n", 64) + "/net": {},
	} {
		got, err := conf.Network(text)
		if got != want || (err == nil) != (want != Network{}) || err != nil && !cnierr.Is(err, cnierr.InvalidConfig) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func FuzzNetwork(f *testing.F) {
	for _, text := range []string{"net", "team/net@if0", "/etc/cni/net.d", "../x", "a@@", "\x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := (&Conf{MultusNamespace: "kube-system"}).Network(text)
		if err == nil && (n.Path == "") == (n.Name == "") || n.OnDisk && n.Path != "" || strings.ContainsAny(n.Name, "/@") {
			t.Errorf("%q: %+v", text, n)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(minimal, "K8S_POD_NAME=a;b=c")
	f.Add(`{"delegates":[null],"verify":null,"cni.dev/valid-attachments":[null]}`, ";;")
	f.Fuzz(func(_ *testing.T, stdin, args string) {
		inv, err := Parse(&skel.CmdArgs{StdinData: []byte(stdin), Args: args})
		if err == nil {
			inv.Request()
		}
	})
}
