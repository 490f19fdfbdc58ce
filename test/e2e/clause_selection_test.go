package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/test/harness"
)

// witness is a node whose scripted delegates log their whole input. It proves the
// clauses about what a delegate receives.
type witness struct {
	*node
	before harness.HostState
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	n := newNode(t, nil)
	n.serve()
	n.warm()
	return &witness{node: n, before: n.state()}
}

// told is one call of a delegate, as the delegate saw it.
type told struct {
	Verb        string         `json:"verb"`
	ContainerID string         `json:"containerID"`
	IfName      string         `json:"ifName"`
	Stdin       map[string]any `json:"stdin"`
}

// at returns the value at a path of keys in the call's configuration, as JSON;
// "null" if there is none.
func (c *told) at(keys ...string) string {
	var v any = c.Stdin
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// plugin returns the configuration of a scripted delegate with these additional
// keys.
func (w *witness) plugin(keys map[string]any) map[string]any {
	p := map[string]any{"type": "scripted", "log": w.path("told")}
	for k, v := range keys {
		p[k] = v
	}
	return p
}

// follower returns a scripted delegate that leaves the work to its predecessor in
// the chain.
func (w *witness) follower(keys map[string]any) map[string]any {
	p := w.plugin(keys)
	p["script"] = map[string]any{"ADD": map[string]any{"stdout": `{"cniVersion":"1.0.0"}`}}
	return p
}

func (w *witness) json(v any) string {
	w.t.Helper()
	raw, err := json.Marshal(v)
	w.must(err)
	return string(raw)
}

// network defines a network with one scripted delegate.
func (w *witness) network(name string, keys map[string]any) {
	w.t.Helper()
	p := w.plugin(keys)
	if p["cniVersion"] == nil {
		p["cniVersion"] = "1.0.0"
	}
	w.define(name, "", w.json(p))
}

// networkOf defines a network in another namespace than the pods'.
func (w *witness) networkOf(namespace, name string) {
	w.t.Helper()
	config := w.json(w.plugin(map[string]any{"cniVersion": "1.0.0"}))
	w.file("definitions/"+namespace+"."+name+".json", w.json(map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name, "namespace": namespace}, "spec": map[string]any{"config": config},
	}))
}

// chain defines a network that is a list; keys are those of the list itself.
func (w *witness) chain(name string, keys map[string]any, plugins ...map[string]any) {
	w.t.Helper()
	list := map[string]any{"cniVersion": "1.0.0", "plugins": plugins}
	for k, v := range keys {
		list[k] = v
	}
	w.define(name, "", w.json(list))
}

// calls returns the calls of a verb since the log was last removed, in order.
func (w *witness) calls(verb string) []told {
	w.t.Helper()
	text, err := os.ReadFile(w.path("told"))
	if !errors.Is(err, os.ErrNotExist) {
		w.must(err)
	}
	var out []told
	for line := range bytes.Lines(text) {
		var c told
		w.must(json.Unmarshal(line, &c))
		if c.Verb == verb {
			out = append(out, c)
		}
	}
	return out
}

// attach attaches a new pod with an annotation and returns the delegates' ADD
// calls. Their number must be wanted.
func (w *witness) attach(annotation string, wanted int) (*pod, []told) {
	w.t.Helper()
	w.must(os.RemoveAll(w.path("told")))
	p := w.addPod(fmt.Sprintf("app%d", w.count), annotation)
	w.succeed("ADD", p)
	calls := w.calls("ADD")
	if len(calls) != wanted {
		w.t.Fatalf("%d calls of ADD, want %d: %+v", len(calls), wanted, calls)
	}
	return p, calls
}

// detach releases the pod and checks that the host is as before.
func (w *witness) detach(p *pod) {
	w.t.Helper()
	w.succeed("DEL", p)
	w.emptySandbox(p)
	w.must(p.ns.Delete())
	w.unchanged(w.before)
}

// is fails unless the value at a path of keys in the call is this JSON.
func (w *witness) is(c told, want string, keys ...string) {
	w.t.Helper()
	var a, b any
	w.must(json.Unmarshal([]byte(want), &a))
	w.must(json.Unmarshal([]byte(c.at(keys...)), &b))
	if !reflect.DeepEqual(a, b) {
		w.t.Errorf("%s of %s got %s %s, want %s", c.Verb, c.IfName, strings.Join(keys, "."), c.at(keys...), want)
	}
}

// able returns the plugin key that declares capabilities.
func able(names ...string) map[string]any {
	caps := map[string]bool{}
	for _, n := range names {
		caps[n] = true
	}
	return map[string]any{"capabilities": caps}
}

// toldClauses are the clauses about the input of a single delegate: keys of the
// network's plugin, the pod's annotation, and the value that the delegate's
// configuration must have at a path.
var toldClauses = map[string]struct {
	keys       map[string]any
	annotation string
	path       []string
	want       string
}{
	"MN-4.1.2-ips": {
		map[string]any{"capabilities": map[string]bool{"ips": true}, "addresses": []string{"10.94.0.5/24", "fd00:94::5/64"}},
		`[{"name":"net","ips":["10.94.0.5","fd00:94::5/64"]}]`, []string{"runtimeConfig"}, `{"ips":["10.94.0.5","fd00:94::5/64"]}`,
	},
	"MN-4.1.2-mac": {
		map[string]any{"capabilities": map[string]bool{"mac": true}, "mac": "02:00:00:00:00:11"},
		`[{"name":"net","mac":"02:00:00:00:00:11"}]`, []string{"runtimeConfig"}, `{"mac":"02:00:00:00:00:11"}`,
	},
	"MN-4.1.2-portMappings": {
		able("portMappings"),
		`[{"name":"net","portMappings":[{"hostPort":1,"containerPort":65535},{"hostPort":53,"containerPort":53,"protocol":"UDP"},
			{"hostPort":9,"containerPort":8,"protocol":"Sctp"}]}]`,
		[]string{"runtimeConfig"},
		`{"portMappings":[{"hostPort":1,"containerPort":65535,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp"},
			{"hostPort":9,"containerPort":8,"protocol":"sctp"}]}`,
	},
	"MN-4.1.2-bandwidth": {
		able("bandwidth"),
		`[{"name":"net","bandwidth":{"ingressRate":2048,"ingressBurst":1600,"egressRate":4096}}]`,
		[]string{"runtimeConfig"}, `{"bandwidth":{"ingressRate":2048,"ingressBurst":1600,"egressRate":4096}}`,
	},
	"MN-4.1.2-infiniband-guid": {
		able("infinibandGUID"),
		`[{"name":"net","infiniband-guid":"c2:11:22:33:44:55:66:77"}]`, []string{"runtimeConfig"}, `{"infinibandGUID":"c2:11:22:33:44:55:66:77"}`,
	},
	"MN-4.1.2-ipam-claim": {
		nil, `[{"name":"net","ipam-claim-reference":"claim-1"}]`, []string{"args", "cni"}, `{"ipam-claim-reference":"claim-1"}`,
	},
}

// TestClauseSelection proves section 4 of the multi-network specification for valid
// annotations; TestClauseSelectionRefused proves the rest.
func TestClauseSelection(t *testing.T) {
	for id, tc := range toldClauses {
		t.Run(id, func(t *testing.T) {
			w := newWitness(t)
			w.network("net", tc.keys)
			p, calls := w.attach(tc.annotation, 1)
			w.is(calls[0], tc.want, tc.path...)
			w.succeed("CHECK", p)
			w.detach(p)
			w.is(w.calls("CHECK")[0], tc.want, tc.path...)
			w.is(w.calls("DEL")[0], tc.want, tc.path...)
		})
	}
	for id, prove := range map[string]func(*witness){
		"MN-4.1.1-comma":          (*witness).comma,
		"MN-4.1.2-json":           (*witness).jsonForm,
		"MN-4.1.2-ips-capability": (*witness).capabilityOfOne,
		"MN-4.1.2-interface":      (*witness).interfaceNames,
		"MN-4.1.2-cni-args":       (*witness).cniArgs,
		"MN-4.1.2-default-route":  (*witness).defaultRoute,
		"MN-4.1-invalid":          (*witness).invalidIgnored,
		"MN-4.2-same-twice":       (*witness).sameTwice,
		"MN-4.2-tuple":            (*witness).tuple,
	} {
		t.Run(id, func(t *testing.T) { prove(newWitness(t)) })
	}
}

// comma checks the default namespace, blanks around entries, and @ifname.
func (w *witness) comma() {
	w.network("a", nil)
	w.network("c", nil)
	w.networkOf("other", "b")
	p, calls := w.attach(" a , other/b,\tc@data7 , other/b@ext8", 4)
	for i, want := range [][2]string{{"a", "net1"}, {"b", "net2"}, {"c", "data7"}, {"b", "ext8"}} {
		w.is(calls[i], `"`+want[0]+`"`, "name")
		if calls[i].IfName != want[1] {
			w.t.Errorf("network %s is %s, want %s", want[0], calls[i].IfName, want[1])
		}
		w.interfaceOf(p, want[1])
	}
	w.detach(p)
}

// jsonForm checks that reserved keys are logged but not fatal, and that keys with a
// dot pass silently.
func (w *witness) jsonForm() {
	w.network("a", nil)
	w.networkOf("other", "b")
	p := w.addPod("app", `[{"name":"a","colour":"blue","vendor.example/hint":{"x":[1]}}, {"name":"b","namespace":"other"}]`)
	res := w.succeed("ADD", p)
	if log := string(res.Stderr); !strings.Contains(log, "colour") || !strings.Contains(log, "reserved") || strings.Contains(log, "vendor.example/hint") {
		w.t.Errorf("the log must name only colour: %s", log)
	}
	w.interfaceOf(p, "net1")
	w.interfaceOf(p, "net2")
	w.detach(p)
}

// capabilityOfOne checks that one plugin of the chain with the capability is
// enough, and that only this plugin receives the value.
func (w *witness) capabilityOfOne() {
	first := w.plugin(map[string]any{"addresses": []string{"10.94.0.5/24"}})
	w.chain("net", nil, first, w.follower(able("ips")))
	p, calls := w.attach(`[{"name":"net","ips":["10.94.0.5/24"]}]`, 2)
	w.is(calls[0], `null`, "runtimeConfig")
	w.is(calls[1], `{"ips":["10.94.0.5/24"]}`, "runtimeConfig")
	w.detach(p)
}

// interfaceNames checks that the requested name becomes CNI_IFNAME, up to the
// kernel's 15 bytes.
func (w *witness) interfaceNames() {
	w.network("net", nil)
	p, calls := w.attach(`[{"name":"net","interface":"a23456789.1_3-5"},{"name":"net"}]`, 2)
	for i, want := range []string{"a23456789.1_3-5", "net2"} {
		if calls[i].IfName != want {
			w.t.Errorf("attachment %d is %s, want %s", i+1, calls[i].IfName, want)
		}
		w.interfaceOf(p, want)
	}
	w.detach(p)
}

// cniArgs checks that the arguments are merged into every plugin of the chain and
// that the pod's value wins.
func (w *witness) cniArgs() {
	own := map[string]any{"args": map[string]any{"cni": map[string]any{"rack": "definition", "own": 2}, "other": 3}}
	w.chain("net", nil, w.plugin(own), w.follower(nil))
	p, calls := w.attach(`[{"name":"net","cni-args":{"rack":"pod","list":[1,{"a":null}]}}]`, 2)
	w.is(calls[0], `{"cni":{"rack":"pod","own":2,"list":[1,{"a":null}]},"other":3}`, "args")
	w.is(calls[1], `{"cni":{"rack":"pod","list":[1,{"a":null}]}}`, "args")
	w.detach(p)
}

// tuple checks that ADD, CHECK and DEL of an attachment share container ID, network
// name and interface name.
func (w *witness) tuple() {
	w.network("a", nil)
	w.network("b", map[string]any{"name": "own-name"})
	p, _ := w.attach("a,b@data7", 2)
	w.succeed("CHECK", p)
	w.detach(p)
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		got := map[string]bool{}
		for _, c := range w.calls(verb) {
			got[strings.Join([]string{c.ContainerID, c.at("name"), c.IfName}, " ")] = true
		}
		want := map[string]bool{p.ID + ` "a" net1`: true, p.ID + ` "own-name" data7`: true}
		if !reflect.DeepEqual(got, want) {
			w.t.Errorf("%s was called for %v, want %v", verb, got, want)
		}
	}
}
