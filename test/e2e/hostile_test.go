package e2e

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/netconf"
)

// hostile are values that no key, annotation or configuration is meant to have.
func hostile() []string {
	return []string{
		`null`, `[null]`, `[]`, `{}`, `""`, `"\u0000"`, `-1`, `1e400`, `99999999999999999999`, `true`, `[[]]`, `{"plugins":[]}`,
		`{"plugins":[null]}`, `{"plugins":[{}]}`, `{"plugins":{}}`, `{"type":["bridge"]}`, `[{"name":null}]`, `[{"name":{"x":1}}]`,
		`{"type":"bridge","ipam":[],"runtimeConfig":7}`, `{"type":"bridge","args":7}`, `{"type":"bridge","args":{"cni":[7]},"capabilities":[]}`,
		`[{"name":"plain","cni-args":7}]`, `[{"name":"plain","cni-args":{"a":[null]},"ips":7,"mac":{}}]`, `[{"name":"plain","interface":["eth0"]}]`, `{"cniVersion":7,"name":[],"type":"bridge"}`,
		`"` + strings.Repeat("x", 250<<10) + `"`,
		strings.Repeat("[", 20000) + strings.Repeat("]", 20000),
		strings.Repeat(`{"plugins":`, 5000) + "1" + strings.Repeat("}", 5000),
		`{"name":"n","type":"bridge","pad":"` + strings.Repeat("x", 250<<10) + `"}`,
	}
}

// every runs every verb; whatever they answer, they must answer, and DEL must
// succeed and leave nothing.
func (n *node) every(p *pod, what string) {
	n.t.Helper()
	n.answers(p, what, "STATUS", "ADD", "CHECK", "GC", "DEL", "GC")
	if link, err := p.ns.Link("eth0"); err != nil || link != nil {
		n.t.Errorf("after DEL with %.200s: eth0 is left: %v", what, err)
	}
}

// answers runs verbs, GC with the sandbox as the one that lives.
func (n *node) answers(p *pod, what string, verbs ...string) {
	n.t.Helper()
	good := n.rt
	defer func() { n.rt = good }()
	for _, verb := range verbs {
		n.rt = good
		if verb == "GC" {
			n.withConf(map[string]any{"cni.dev/valid-attachments": []any{attachment(p, "eth0")}})
		}
		res := n.call(verb, p)
		if strings.Contains(string(res.Stderr), "panic: ") || strings.Contains(string(res.Stderr), "goroutine ") || res.Status > 1 {
			n.t.Errorf("%s with %.200s: status %d: %.2000s", verb, what, res.Status, res.Stderr)
		}
		if verb == "DEL" && res.Status != 0 {
			n.t.Errorf("DEL with %.200s: %.2000s", what, res.Stdout)
		}
	}
}

func TestNothingHostileEndsInAPanic(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	before := n.state()
	plain := n.addPod("plain", "plain")
	for _, value := range hostile() {
		n.define("evil", "", value)
		p := n.addPod("victim", "evil")
		n.every(p, "definition "+value)
		n.must(p.ns.Delete())
		p = n.addPod("victim", value)
		n.every(p, "annotation "+value)
		n.must(p.ns.Delete())
		n.every(plain, "another's definition "+value)
	}
	// A definition that was good when the pod was attached.
	p := n.addPod("victim", "evil")
	for _, value := range hostile() {
		n.define("evil", "", n.bridge("plain", "10.89.0.0/16"))
		n.succeed("ADD", p)
		n.define("evil", "", value)
		n.answers(p, "definition that became "+value, "STATUS", "CHECK", "GC")
		n.succeed("CHECK", p)
		n.succeed("DEL", p)
	}
	n.must(p.ns.Delete())
	n.succeed("ADD", plain) // what others wrote does not concern this pod
	n.succeed("DEL", plain)
	n.must(plain.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}

func TestNoConfigurationMakesAPodUndeletable(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	good := n.rt
	conf := reflect.TypeFor[netconf.Conf]()
	for i := range conf.NumField() {
		key := conf.Field(i).Tag.Get("json")
		switch key {
		case "cniDir", "binDir": // without these DEL cannot know where the journal and the programs are
			continue
		case "cniVersion", "name": // package skel reads these two, as do the runtimes
			continue
		}
		for _, value := range []string{`7`, `{"x":[null]}`, `[[]]`, `"\u0000"`} {
			n.rt = good
			p := n.addPod("pod", "")
			n.succeed("ADD", p)
			n.rawKey(key, value)
			what := "the key " + key + ": " + value
			n.answers(p, what, "STATUS", "CHECK", "GC", "DEL")
			if link, err := p.ns.Link("eth0"); err != nil || link != nil {
				t.Errorf("after DEL with %s: link %v %v", what, link, err)
			}
			n.answers(p, what, "ADD", "DEL")
			n.must(p.ns.Delete())
		}
	}
	n.rt = good
	if left, err := os.ReadDir(n.path("state")); err != nil || len(left) > 2 { // gc.lock and libcni's directory
		t.Errorf("left in the journal's directory: %v %v", left, err)
	}
}

// rawKey sets a key of the plugin's configuration to a value as it stands.
func (n *node) rawKey(key, value string) {
	n.t.Helper()
	var conf map[string]json.RawMessage
	n.must(json.Unmarshal(n.rt.Conf, &conf))
	conf[key] = json.RawMessage(value)
	raw, err := json.Marshal(conf)
	n.must(err)
	n.rt.Conf = raw
}
