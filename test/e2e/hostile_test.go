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
		`{"type":"bridge","ipam":[],"runtimeConfig":7}`, `{"cniVersion":7,"name":[],"type":"bridge"}`,
		`"` + strings.Repeat("x", 250<<10) + `"`,
		strings.Repeat("[", 20000) + strings.Repeat("]", 20000),
		strings.Repeat(`{"plugins":`, 5000) + "1" + strings.Repeat("}", 5000),
		`{"name":"n","type":"bridge","pad":"` + strings.Repeat("x", 250<<10) + `"}`,
	}
}

// every runs every verb; whatever they answer, they must answer, and DEL must
// leave nothing.
func (n *node) every(p *pod, what string) {
	n.t.Helper()
	for _, verb := range []string{"STATUS", "ADD", "CHECK", "DEL", "GC"} {
		res := n.call(verb, p)
		if strings.Contains(string(res.Stderr), "panic") || strings.Contains(string(res.Stderr), "goroutine ") || res.Status > 1 {
			n.t.Errorf("%s with %.200s: status %d: %.2000s", verb, what, res.Status, res.Stderr)
		}
	}
	if link, err := p.ns.Link("eth0"); err != nil || link != nil {
		n.t.Errorf("after DEL with %.200s: eth0 is left: %v", what, err)
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
			res := n.call("DEL", p)
			if link, err := p.ns.Link("eth0"); err != nil || link != nil || res.Status != 0 {
				t.Errorf("%s: %.100s: DEL: %s, link %v %v", key, value, res.Stdout, link, err)
			}
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
