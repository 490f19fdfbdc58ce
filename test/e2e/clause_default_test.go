package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/manifold-cni/manifold/test/harness"
)

// TestClauseDefaultNetwork proves the clauses of the cluster default network and of
// order and failure (multi-network specification, sections 6 and 7), each under its
// id.
func TestClauseDefaultNetwork(t *testing.T) {
	t.Run("MN-6.2-first", defaultFirst)
	t.Run("MN-6.1-readiness", defaultReadiness)
	t.Run("MN-7.1-version", defaultVersion)
	t.Run("MN-7.2-add", defaultFailedAdd)
	t.Run("MN-7.2-del", defaultFailedDel)
	t.Run("MN-7.3-serial", defaultSerial)
	t.Run("MN-7.4-isolation", defaultIsolation)
	t.Run("MN-7.5-runtimeConfig", defaultRuntimeConfig)
}

// cniVersions are all versions of the CNI specification.
var cniVersions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// scripted returns a configuration of a scripted delegate that logs its calls; more
// is appended to its keys.
func (n *node) scripted(more string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","type":"scripted","log":%q%s}`, n.path("calls"), more)
}

// setDefault makes a single plugin the cluster default network, in a CNI version.
func (n *node) setDefault(version, plugin string) {
	n.t.Helper()
	n.file("net.d/10-default.conflist", `{"cniVersion":"`+version+`","name":"cluster-net","plugins":[`+plugin+`]}`)
}

// newScriptedNode returns a node with an agent whose default network and networks
// one, two and three are scripted and log their calls.
func newScriptedNode(t *testing.T, conf map[string]any) *node {
	t.Helper()
	n := newNode(t, conf)
	n.serve()
	n.setDefault("1.0.0", n.scripted(`,"addresses":["10.71.0.2/24"]`))
	for i, name := range []string{"one", "two", "three"} {
		n.define(name, "", n.scripted(fmt.Sprintf(`,"addresses":["10.72.%d.2/24"]`, i)))
	}
	return n
}

// sequence returns the calls of scripted delegates, as "VERB interface".
func (n *node) sequence() string { n.t.Helper(); return n.sequenceIn("calls") }

// sequenceIn is like sequence, with another log.
func (n *node) sequenceIn(log string) string {
	n.t.Helper()
	var out []string
	for _, c := range n.callsIn(log) {
		out = append(out, strings.TrimSpace(c.Verb+" "+c.IfName))
	}
	return strings.Join(out, ", ")
}

func defaultFirst(t *testing.T) {
	n := newScriptedNode(t, map[string]any{"defaultNetworks": []string{"default/three"}})
	p := n.addPod("app", "two@a7,one")
	n.succeed("ADD", p)
	if got, want := n.sequence(), "ADD eth0, ADD net1, ADD a7, ADD net3"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	n.succeed("DEL", p)
}

func defaultReadiness(t *testing.T) {
	for _, network := range []string{"net.d/10-default.conflist", "net.d"} {
		t.Run(network, func(t *testing.T) {
			n := newNode(t, nil)
			n.serve()
			n.withConf(map[string]any{"clusterNetwork": n.path(network)})
			conf, err := os.ReadFile(n.path("net.d/10-default.conflist"))
			n.must(err)
			n.must(os.Remove(n.path("net.d/10-default.conflist")))
			// Not ready: no configuration appears that a runtime would take for a network.
			if out, err := n.install("install", "--agent-config", n.path("agent.json")); err == nil || !strings.Contains(out, "no network configuration") {
				t.Errorf("install without a default network: %v\n%s", err, out)
			}
			if exists(n.path("net.d/00-manifold.conflist")) {
				t.Error("the configuration appeared without a default network")
			}
			n.refuse("STATUS", &pod{}, 50, n.path("net.d"))
			p := n.addPod("app", "")
			n.refusedWithoutTrace(p, 11, n.path("net.d"), "default network")
			// Ready.
			n.file("net.d/10-default.conflist", string(conf))
			if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil || !exists(n.path("net.d/00-manifold.conflist")) {
				t.Errorf("install with a default network: %v\n%s", err, out)
			}
			n.succeed("STATUS", &pod{})
			n.succeed("ADD", p)
			// Withdrawn: a runtime learns of it, and running pods are still served.
			n.must(os.Remove(n.path("net.d/10-default.conflist")))
			n.refuse("STATUS", &pod{}, 50, n.path("net.d"))
			n.succeed("CHECK", p)
			n.succeed("DEL", p)
		})
	}
	t.Run("readinessindicatorfile", func(t *testing.T) {
		n := newNode(t, nil)
		n.serve()
		n.withConf(map[string]any{"readinessindicatorfile": n.path("ready")})
		n.refuse("STATUS", &pod{}, 50, n.path("ready"))
		n.file("ready", "")
		n.succeed("STATUS", &pod{})
	})
}

func defaultVersion(t *testing.T) {
	for _, asked := range cniVersions {
		t.Run(asked, func(t *testing.T) {
			n := newNode(t, map[string]any{"cniVersion": asked})
			n.serve()
			for i, v := range cniVersions {
				n.must(os.RemoveAll(n.path("calls")))
				n.setDefault(v, n.scripted(`,"addresses":["10.73.0.2/24"]`))
				n.define("list", "", `{"cniVersion":"`+v+`","name":"list-net","plugins":[`+n.scripted(`,"addresses":["10.74.0.2/24"]`)+`,
					`+n.scripted(`,"script":{"ADD":{"stdout":"{\"cniVersion\":\"`+v+`\"}"},"DEL":{"stdout":"\n"}}`)+`]}`)
				p := n.addPod(fmt.Sprintf("app-%d", i), "list")
				n.inVersion(n.succeed("ADD", p), asked, "10.73.0.2")
				for _, c := range n.calls("ADD") {
					name := map[string]string{"eth0": "cluster-net", "net1": "list-net"}[c.IfName]
					if c.Stdin.CNIVersion != v || c.Stdin.Name != name {
						t.Errorf("a plugin of list %s in %s was given name %q, version %q", name, v, c.Stdin.Name, c.Stdin.CNIVersion)
					}
				}
				n.succeed("DEL", p)
			}
		})
	}
}

// inVersion fails unless the result has this CNI version and address.
func (n *node) inVersion(res *harness.Result, version, address string) {
	n.t.Helper()
	result, err := create.CreateFromBytes(res.Stdout)
	n.must(err)
	now, err := types100.NewResultFromResult(result)
	n.must(err)
	if result.Version() != version || len(now.IPs) != 1 || now.IPs[0].Address.IP.String() != address {
		n.t.Errorf("result %s, want %s in version %s", res.Stdout, address, version)
	}
}

func defaultFailedAdd(t *testing.T) {
	n := newScriptedNode(t, nil)
	n.define("two", "", n.scripted(`,"script":{"ADD":{"error":{"code":117,"msg":"no room"}}}`))
	p := n.addPod("app", "one,two,three")
	n.refuse("ADD", p, 117, "pod default/app", "network default/two", "interface net2", "no room")
	n.emptySandbox(p)
	want := "ADD eth0, ADD net1, ADD net2, DEL net2, DEL net1, DEL eth0"
	if got := n.sequence(); got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	n.succeed("DEL", p)
	// A failure during the teardown neither replaces the error nor stops the teardown.
	n.must(os.Remove(n.path("calls")))
	n.define("one", "", n.scripted(`,"script":{"DEL":{"error":{"code":118,"msg":"switch is busy"}}}`))
	q := n.addPod("again", "one,two,three")
	n.refuse("ADD", q, 117, "network default/two", "no room")
	if got := n.sequence(); got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	n.refuse("DEL", q, 118, "network default/one", "switch is busy")
}

func defaultFailedDel(t *testing.T) {
	n := newScriptedNode(t, nil)
	fails := func(text string) string {
		return n.scripted(`,"script":{"DEL":{"error":{"code":118,"msg":"` + text + `"}}}`)
	}
	n.define("one", "", fails("first switch is busy"))
	n.define("three", "", fails("third switch is busy"))
	p := n.addPod("app", "one,two,three")
	n.succeed("ADD", p)
	n.must(os.Remove(n.path("calls")))
	n.refuse("DEL", p, 118, "pod default/app", "network default/one", "first switch is busy", "network default/three", "third switch is busy")
	if got, want := n.sequence(), "DEL net3, DEL net2, DEL net1, DEL eth0"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	for _, name := range []string{"eth0", "net2"} {
		if link, err := p.ns.Link(name); err != nil || link != nil {
			t.Errorf("%s was not torn down: %v %v", name, link, err)
		}
	}
	// The next DEL only retries what is left.
	n.must(os.Remove(n.path("calls")))
	n.refuse("DEL", p, 118, "first switch is busy", "third switch is busy")
	if got, want := n.sequence(), "DEL net3, DEL net1"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func defaultSerial(t *testing.T) {
	n := newScriptedNode(t, nil)
	gate := n.path("gate")
	n.define("slow", "", n.scripted(`,"script":{"ADD":{"gate":"`+gate+`"}}`))
	slow, quick := n.addPod("slow", "slow,one,two"), n.addPod("quick", "one,two")
	done := make(chan *harness.Result)
	go func() { done <- n.call("ADD", slow) }()
	n.eventually("the slow delegate", func() bool { return exists(gate + ".reached") })
	// Another pod is attached and released while the first one waits.
	n.succeed("ADD", quick)
	n.succeed("DEL", quick)
	of := func(p *pod) (out []string) {
		for _, c := range n.calls() {
			if c.ContainerID == p.ID {
				out = append(out, c.Verb+" "+c.IfName)
			}
		}
		return out
	}
	if got := of(slow); !slices.Equal(got, []string{"ADD eth0", "ADD net1"}) {
		t.Errorf("while net1 is being attached, the delegates were called for %v", got)
	}
	n.file("gate", "")
	if res := <-done; res.Status != 0 {
		t.Fatalf("ADD: %s", res.Stdout)
	}
	if got := of(slow); !slices.Equal(got, []string{"ADD eth0", "ADD net1", "ADD net2", "ADD net3"}) {
		t.Errorf("calls %v", got)
	}
	n.succeed("DEL", slow)
}

func defaultIsolation(t *testing.T) {
	n := newScriptedNode(t, map[string]any{"namespaceIsolation": true, "globalNamespaces": "infra, shared"})
	for _, namespace := range []string{"shared", "foreign"} {
		n.file("definitions/"+namespace+".json", `{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition",
			"metadata":{"name":"net","namespace":"`+namespace+`"},"spec":{"config":"{\"cniVersion\":\"1.0.0\",\"type\":\"scripted\"}"}}`)
	}
	n.refusedWithoutTrace(n.addPod("thief", "one,foreign/net"), 104, "network foreign/net", "namespaceIsolation", "namespace foreign")
	p := n.addPod("app", "one,shared/net")
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.withConf(map[string]any{"namespaceIsolation": false})
	q := n.addPod("open", "foreign/net")
	n.succeed("ADD", q)
	n.succeed("DEL", q)
}

func defaultRuntimeConfig(t *testing.T) {
	const able = `,"capabilities":{"portMappings":true,"bandwidth":true,"aliases":true}`
	given := map[string]string{
		"portMappings": `[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]`,
		"bandwidth":    `{"ingressBurst":8000,"ingressRate":8000}`, "aliases": `["app.example"]`,
	}
	runtime := map[string]json.RawMessage{}
	for k, v := range given {
		runtime[k] = json.RawMessage(v)
	}
	n := newNode(t, map[string]any{"runtimeConfig": runtime, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "aliases": true}})
	n.serve()
	n.setDefault("1.0.0", n.scripted(able))
	n.define("one", "", n.scripted(able))
	p := n.addPod("app", "one")
	n.succeed("ADD", p)
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
	for _, c := range n.calls() {
		for key, want := range given {
			if c.IfName != "eth0" {
				want = ""
			}
			if got := string(c.Stdin.RuntimeConfig[key]); got != want && !sameJSON(got, want) {
				t.Errorf("%s %s was given %s of %q, want %q", c.Verb, c.IfName, key, got, want)
			}
		}
	}
}
