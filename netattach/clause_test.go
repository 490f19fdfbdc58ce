package netattach

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// wantError fails the test unless err is an *Error whose text has all of parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v is no *Error", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error lacks %q: %v", p, err)
		}
	}
}

func TestClauseSelection(t *testing.T) {
	two := []string{"10.0.0.1"}
	empty := []string{}
	for id, tc := range map[string]struct {
		in   string
		want []Selection
	}{
		"MN-4.1.1-comma":           {" a , ns/b,c@if0 ", []Selection{{Namespace: "pod", Name: "a"}, {Namespace: "ns", Name: "b"}, {Namespace: "pod", Name: "c", Interface: "if0"}}},
		"MN-4.1.1-comma/blanks":    {"ns / b @ if0", []Selection{{Namespace: "ns", Name: "b", Interface: "if0"}}},
		"MN-4.1.1-comma/empty":     {"  ", nil},
		"MN-4.1.2-json":            {`[{"name":"a"},{"name":"b","namespace":"ns"}]`, []Selection{{Namespace: "pod", Name: "a"}, {Namespace: "ns", Name: "b"}}},
		"MN-4.1.2-json/unknown":    {`[{"name":"a","x.y/z":1,"new":2}]`, []Selection{{Namespace: "pod", Name: "a", Unknown: map[string]json.RawMessage{"x.y/z": json.RawMessage("1"), "new": json.RawMessage("2")}}}},
		"MN-4.1.2-ips":             {`[{"name":"a","ips":["10.0.0.1","fd00::1/64"]}]`, []Selection{{Namespace: "pod", Name: "a", IPs: []string{"10.0.0.1", "fd00::1/64"}}}},
		"MN-4.1.2-mac":             {`[{"name":"a","mac":"02:00:00:00:00:01"}]`, []Selection{{Namespace: "pod", Name: "a", MAC: "02:00:00:00:00:01"}}},
		"MN-4.1.2-json/nulls":      {`[{"name":"a","namespace":null,"interface":null,"ips":null,"mac":null,"portMappings":null,"bandwidth":null,"cni-args":null,"default-route":null}]`, []Selection{{Namespace: "pod", Name: "a"}}},
		"MN-4.1.2-interface":       {`[{"name":"a","interface":"net-1.2_x"}]`, []Selection{{Namespace: "pod", Name: "a", Interface: "net-1.2_x"}}},
		"MN-4.1.2-cni-args":        {`[{"name":"a","cni-args":{"k":[1]}}]`, []Selection{{Namespace: "pod", Name: "a", CNIArgs: map[string]json.RawMessage{"k": json.RawMessage("[1]")}}}},
		"MN-4.1.2-portMappings":    {`[{"name":"a","portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"UDP"},{"hostPort":1,"containerPort":65535}]}]`, []Selection{{Namespace: "pod", Name: "a", Ports: []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "udp"}, {HostPort: 1, ContainerPort: 65535, Protocol: "tcp"}}}}},
		"MN-4.1.2-bandwidth":       {`[{"name":"a","bandwidth":{"ingressRate":5,"ingressBurst":2}}]`, []Selection{{Namespace: "pod", Name: "a", Bandwidth: &Bandwidth{IngressRate: 5, IngressBurst: 2}}}},
		"MN-4.1.2-default-route":   {`[{"name":"a","default-route":["10.0.0.1"]}]`, []Selection{{Namespace: "pod", Name: "a", DefaultRoute: &two}}},
		"MN-4.1.2-default-route/":  {`[{"name":"a","default-route":[]}]`, []Selection{{Namespace: "pod", Name: "a", DefaultRoute: &empty}}},
		"MN-4.1.2-infiniband-guid": {`[{"name":"a","infiniband-guid":"c2:11:22:33:44:55:66:77"}]`, []Selection{{Namespace: "pod", Name: "a", GUID: "c2:11:22:33:44:55:66:77"}}},
		"MN-4.1.2-ipam-claim":      {`[{"name":"a","ipam-claim-reference":"c"}]`, []Selection{{Namespace: "pod", Name: "a", IPAMClaimReference: "c"}}},
		"MN-4.2-same-twice":        {"a,a", []Selection{{Namespace: "pod", Name: "a"}, {Namespace: "pod", Name: "a"}}},
		"DV-container":             {`[{"name":"a","manifold.dev/container":"rx"}]`, []Selection{{Namespace: "pod", Name: "a", Container: "rx"}}},
		"DV-pinned":                {`[{"name":"a","deviceID":"0000:21:10.4"}]`, []Selection{{Namespace: "pod", Name: "a", DeviceID: "0000:21:10.4"}}},
	} {
		t.Run(id, func(t *testing.T) {
			got, err := ParseSelections(tc.in, "pod")
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
	s, err := ParseSelections(`[{"name":"a","x.y/z":1,"new":2}]`, "pod")
	if err != nil || !reflect.DeepEqual(s[0].UnknownReserved(), []string{"new"}) {
		t.Errorf("reserved keys %v, %v", s, err)
	}
}

func TestClauseSelectionRefused(t *testing.T) {
	for id, tc := range map[string]struct {
		in    string
		parts []string
	}{
		"MN-4.1-invalid/not JSON":        {`[{"name":`, []string{"JSON"}},
		"MN-4.1-invalid/object":          {`{"name":"a"}`, []string{"JSON list"}},
		"MN-4.1-invalid/string":          {`"a"`, []string{"JSON list"}},
		"MN-4.1-invalid/null entry":      {`[null]`, []string{"entry 1", "null"}},
		"MN-4.1-invalid/number entry":    {`[1]`, []string{"entry 1"}},
		"MN-4.1-invalid/empty entry":     {`a,,b`, []string{"entry 2", "empty"}},
		"MN-4.1-invalid/large":           {strings.Repeat("a", 1<<20), []string{"1048576 bytes"}},
		"MN-4.1-invalid/many":            {strings.TrimSuffix(strings.Repeat("a,", 10_000), ","), []string{"10000 entries"}},
		"MN-4.1-invalid/many JSON":       {"[" + strings.TrimSuffix(strings.Repeat(`{"name":"a"},`, 10_000), ",") + "]", []string{"10000 entries"}},
		"MN-4.1-invalid/deep":            {`[{"name":"a","x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}]`, []string{"nested"}},
		"MN-3.3-naming/upper case":       {"A", []string{"name", `"A"`}},
		"MN-3.3-naming/namespace":        {"a.b/c", []string{"namespace"}},
		"MN-3.3-naming/empty namespace":  {"/c", []string{"namespace/name"}},
		"MN-3.3-naming/no name":          {`[{}]`, []string{"name"}},
		"MN-3.3-naming/long":             {strings.Repeat("a", 254), []string{"253"}},
		"MN-4.1.2-interface/path":        {`[{"name":"a","interface":"../x"}]`, []string{"interface", "../x"}},
		"MN-4.1.2-interface/dots":        {`[{"name":"a","interface":".."}]`, []string{"interface"}},
		"MN-4.1.2-interface/long":        {"a@a234567890123456", []string{"interface", "15"}},
		"MN-4.1.2-interface/blank":       {`[{"name":"a","interface":"a b"}]`, []string{"interface"}},
		"MN-4.1.2-interface/pattern":     {"a@net%d", []string{"interface", "net%d"}},
		"MN-4.1.2-interface/setting":     {"a@default", []string{"interface", "default"}},
		"MN-4.1.2-interface/twice":       {"a@x,b@x", []string{"entry 2", "entry 1"}},
		"MN-4.1.2-ips/empty":             {`[{"name":"a","ips":[]}]`, []string{"ips", "empty"}},
		"MN-4.1.2-ips/bad":               {`[{"name":"a","ips":["10.0.0.300"]}]`, []string{"ips", "10.0.0.300"}},
		"MN-4.1.2-ips/null":              {`[{"name":"a","ips":[null]}]`, []string{"ips"}},
		"MN-4.1.2-ips/type":              {`[{"name":"a","ips":"10.0.0.1"}]`, []string{"pod/a", "ips", "wrong type"}},
		"MN-4.1.2-ips/type, namespace":   {`[{"namespace":"ns","name":"a","ips":"10.0.0.1"}]`, []string{"ns/a", "ips", "wrong type"}},
		"MN-4.1.2-interface/two":         {"a@b@c", []string{"pod/a", "namespace/name@interface"}},
		"MN-4.1.2-interface/empty":       {"a@", []string{"pod/a", "namespace/name@interface"}},
		"MN-4.1.2-mac/short":             {`[{"name":"a","mac":"02:00"}]`, []string{"mac", "6 bytes"}},
		"MN-4.1.2-mac/eight":             {`[{"name":"a","mac":"c2:11:22:33:44:55:66:77"}]`, []string{"mac", "6 bytes"}},
		"MN-4.1.2-infiniband-guid/six":   {`[{"name":"a","infiniband-guid":"02:00:00:00:00:01"}]`, []string{"8 bytes"}},
		"MN-4.1.2-portMappings/zero":     {`[{"name":"a","portMappings":[{"hostPort":0,"containerPort":1}]}]`, []string{"port 0"}},
		"MN-4.1.2-portMappings/high":     {`[{"name":"a","portMappings":[{"hostPort":1,"containerPort":65536}]}]`, []string{"65536"}},
		"MN-4.1.2-portMappings/protocol": {`[{"name":"a","portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}]`, []string{"icmp"}},
		"MN-4.1.2-bandwidth/burst":       {`[{"name":"a","bandwidth":{"egressBurst":2}}]`, []string{"burst needs its rate"}},
		"MN-4.1.2-bandwidth/negative":    {`[{"name":"a","bandwidth":{"egressRate":-2}}]`, []string{"negative"}},
		"MN-4.1.2-default-route/bad":     {`[{"name":"a","default-route":["10.0.0.0/8"]}]`, []string{"default-route"}},
		"MN-4.1.2-default-route/mapped":  {`[{"name":"a","default-route":["::ffff:0.0.0.0"]}]`, []string{"default-route", "cannot be the address of a gateway"}},
		"MN-4.1.2-default-route-twice":   {`[{"name":"a","default-route":[]},{"name":"b","default-route":["10.0.0.1"]}]`, []string{"entry 2", "entry 1"}},
		"MN-4.1.2-ipam-claim/beside ips": {`[{"name":"a","ips":["10.0.0.1"],"ipam-claim-reference":"c"}]`, []string{"ipam-claim-reference"}},
		"MN-4.1.2-cni-args/type":         {`[{"name":"a","cni-args":[]}]`, []string{"cni-args"}},
		"DV-pinned/long":                 {`[{"name":"a","deviceID":"` + strings.Repeat("x", 300) + `"}]`, []string{"deviceID"}},
		"DV-container/bad":               {`[{"name":"a","manifold.dev/container":"../x"}]`, []string{ContainerKey}},
	} {
		t.Run(id, func(t *testing.T) {
			got, err := ParseSelections(tc.in, "pod")
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			wantError(t, err, tc.parts...)
		})
	}
}

// render parses and renders a configuration, and checks that libcni accepts the
// outcome.
func render(t *testing.T, config string, o RenderOptions) (map[string]any, []string) {
	t.Helper()
	c, err := ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	raw, notes, err := c.Render(o)
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil || len(list.Plugins) != len(c.Plugins()) {
		t.Fatalf("libcni: %v of %s", err, raw)
	}
	var out map[string]any
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out, notes
}

func TestClauseDefinition(t *testing.T) {
	t.Run("MN-3.4.2-name", func(t *testing.T) {
		for _, config := range []string{`{"type":"a"}`, `{"plugins":[{"type":"a"}]}`} {
			if out, _ := render(t, config, RenderOptions{Name: "object"}); out["name"] != "object" {
				t.Errorf("%s: name %v", config, out["name"])
			}
		}
		if out, _ := render(t, `{"name":"own","type":"a"}`, RenderOptions{Name: "object"}); out["name"] != "own" {
			t.Errorf("name %v", out["name"])
		}
	})
	t.Run("MN-3.2-conf-and-list", func(t *testing.T) {
		out, _ := render(t, `{"cniVersion":"1.1.0","name":"n","disableCheck":true,"disableGC":true,"new":{"a":1},"plugins":[{"type":"b","x":1.0},{"type":"a"}]}`, RenderOptions{})
		plugins := out["plugins"].([]any)
		delete(out, "plugins")
		if got := fmt.Sprint(plugins); got != "[map[type:b x:1.0] map[type:a]]" {
			t.Errorf("plugins %s", got)
		}
		if got := fmt.Sprint(out); got != "map[cniVersion:1.1.0 disableCheck:true disableGC:true name:n new:map[a:1]]" {
			t.Errorf("list %s", got)
		}
	})
	t.Run("MN-3.2-conf-and-list/single", func(t *testing.T) {
		out, _ := render(t, `{"cniVersion":"0.3.1","type":"a","big":12345678901234567890}`, RenderOptions{Name: "n"})
		p := out["plugins"].([]any)[0].(map[string]any)
		if out["cniVersion"] != "0.3.1" || p["big"] != json.Number("12345678901234567890") || p["name"] != nil {
			t.Errorf("%v", out)
		}
	})
}

func TestClauseInjection(t *testing.T) {
	t.Run("DV-inject", func(t *testing.T) {
		out, notes := render(t, `{"name":"n","plugins":[{"type":"a"},{"type":"b","deviceID":"0000:01:00.0"}]}`, RenderOptions{DeviceID: "0000:21:10.4"})
		for _, p := range out["plugins"].([]any) {
			if m := p.(map[string]any); m["deviceID"] != "0000:21:10.4" || m["pciBusID"] != "0000:21:10.4" {
				t.Errorf("plugin %v", m)
			}
		}
		t.Run("DV-static-conflict", func(t *testing.T) {
			if len(notes) != 1 || !strings.Contains(notes[0], "0000:01:00.0") {
				t.Errorf("notes %v", notes)
			}
		})
	})
	t.Run("MN-4.1.2-cni-args", func(t *testing.T) {
		out, _ := render(t, `{"name":"n","plugins":[{"type":"a","args":{"cni":{"k":1,"own":2},"other":3}},{"type":"b"}]}`,
			RenderOptions{CNIArgs: map[string]json.RawMessage{"k": json.RawMessage(`"pod"`)}, IPAMClaimReference: "claim"})
		raw, err := json.Marshal(out["plugins"])
		if err != nil {
			t.Fatal(err)
		}
		want := `[{"args":{"cni":{"ipam-claim-reference":"claim","k":"pod","own":2},"other":3},"type":"a"},{"args":{"cni":{"ipam-claim-reference":"claim","k":"pod"}},"type":"b"}]`
		if string(raw) != want {
			t.Errorf("got  %s\nwant %s", raw, want)
		}
	})
}

func TestConfigRefused(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":          {"", "not a JSON object"},
		"null":           {"null", "not a JSON object"},
		"list":           {"[]", "not a JSON object"},
		"truncated":      {`{"type":`, "not JSON"},
		"no type":        {`{"name":"n"}`, "type"},
		"no plugins":     {`{"name":"n","plugins":[]}`, "0 plugins"},
		"plugins null":   {`{"name":"n","plugins":null}`, "plugins"},
		"null plugin":    {`{"name":"n","plugins":[null]}`, "plugin 1"},
		"plugin string":  {`{"name":"n","plugins":["a"]}`, "plugin 1"},
		"type path":      {`{"type":"../../bin/sh"}`, "plain name"},
		"type dots":      {`{"type":".."}`, "plain name"},
		"type number":    {`{"type":7}`, "not a string"},
		"ipam path":      {`{"type":"a","ipam":{"type":"/bin/sh"}}`, "ipam.type"},
		"name number":    {`{"type":"a","name":7}`, "not a string"},
		"version":        {`{"type":"a","cniVersion":"9.9.9"}`, "9.9.9"},
		"versions":       {`{"type":"a","cniVersions":["x"]}`, "cniVersions"},
		"disableCheck":   {`{"name":"n","disableCheck":"perhaps","plugins":[{"type":"a"}]}`, "disableCheck"},
		"capabilities":   {`{"type":"a","capabilities":{"ips":"yes"}}`, "wrong type"},
		"args":           {`{"type":"a","args":[]}`, "wrong type"},
		"prevResult":     {`{"type":"a","prevResult":7}`, "wrong type"},
		"large":          {`{"type":"a","x":"` + strings.Repeat("a", 256<<10) + `"}`, "at most"},
		"many plugins":   {`{"plugins":[` + strings.TrimSuffix(strings.Repeat(`{"type":"a"},`, 65), ",") + `]}`, "65 plugins"},
		"deep":           {`{"type":"a","x":` + strings.Repeat(`{"x":`, 100) + "1" + strings.Repeat("}", 100) + `}`, "nested"},
		"list name only": {`{"plugins":{"type":"a"}}`, "not a list"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := ParseConfig([]byte(tc.in))
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			wantError(t, err, tc.want)
		})
	}
}
