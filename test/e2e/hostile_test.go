package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/netconf"
)

// hostile returns values that no key, annotation or configuration should have.
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

// every runs every verb. Each must return without a crash, and DEL must succeed and
// leave nothing.
func (n *node) every(p *pod, what string) {
	n.t.Helper()
	n.answers(p, what, "STATUS", "ADD", "CHECK", "GC", "DEL", "GC")
	if link, err := p.ns.Link("eth0"); err != nil || link != nil {
		n.t.Errorf("after DEL with %.200s: eth0 is left: %v", what, err)
	}
}

// answers runs verbs, GC with the sandbox as the only valid one.
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
	// A definition that was valid when the pod was attached.
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
	n.succeed("ADD", plain) // other definitions do not concern this pod
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
		case "cniDir", "binDir": // without these DEL cannot find the journal and the programs
			continue
		case "cniVersion", "name": // package skel reads these two, and so do the runtimes
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

// goesWithoutTrace expects ADD of a pod to be refused, and DEL to succeed and leave
// nothing, with its network namespace and without.
func (n *node) goesWithoutTrace(p *pod) {
	n.t.Helper()
	before := n.state()
	if res := n.call("ADD", p); res.Status == 0 {
		n.t.Errorf("ADD succeeded: %s", res.Stdout)
	}
	n.succeed("DEL", p)
	n.emptySandbox(p)
	n.settles(func() string { return before.Diff(n.state()) })
	n.must(p.ns.Delete())
	p.NetNS = ""
	n.succeed("DEL", p)
}

// oldDelegate is a plugin that supports no version from 1.0.0 on.
const oldDelegate = `#!/bin/sh
version=$(sed -n 's/.*"cniVersion" *: *"\([^"]*\)".*/\1/p')
case "$CNI_COMMAND $version" in
VERSION*) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
*" 0."*) ;;
*) echo '{"cniVersion":"0.4.0","code":1,"msg":"incompatible CNI versions"}'; exit 1 ;;
esac
`

// TestNoDefinitionMakesAPodUndeletable covers definitions that a delegate refuses
// in ADD and then, for good, in DEL.
func TestNoDefinitionMakesAPodUndeletable(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(os.WriteFile(n.path("bin/oldone"), []byte(oldDelegate), 0o755))
	n.must(os.WriteFile(n.path("bin/text"), []byte("not a program"), 0o755))
	n.device("nic0")
	first := n.addPod("first", "plain") // creates the pool's directory
	n.succeed("ADD", first)
	n.succeed("DEL", first)
	pool := `"ipam":{"type":"host-local","dataDir":"` + n.path("ipam") + `","subnet":"10.89.0.0/16"}`
	list := func(last string) string {
		return `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge","bridge":"br-plain",` + pool + `},` + last + `]}`
	}
	for name, config := range map[string]string{
		"mtu":       `{"cniVersion":"1.0.0","type":"bridge","mtu":"abc"}`,
		"vlan":      `{"cniVersion":"1.0.0","type":"bridge","bridge":"br-plain","vlan":99999}`,
		"subnet":    `{"cniVersion":"1.0.0","type":"bridge","bridge":"br-plain","ipam":{"type":"host-local","subnet":"nonsense"}}`,
		"master":    `{"cniVersion":"1.0.0","type":"macvlan","master":7}`,
		"no-device": `{"cniVersion":"1.0.0","type":"host-device"}`,
		"absent":    `{"cniVersion":"1.0.0","type":"host-device","device":"absent0"}`,
		"moved":     `{"cniVersion":"1.0.0","type":"host-device","device":"nic0","ipam":{"type":"host-local","subnet":"nonsense"}}`,
		"tuning":    list(`{"type":"tuning","sysctl":7}`),
		"text":      list(`{"type":"text"}`),
		"crash":     list(`{"type":"scripted","script":{"ADD":{"signal":9},"DEL":{"signal":9}}}`),
		"old-1-1":   `{"cniVersion":"1.1.0","type":"oldone"}`,
		"old-1-0":   `{"cniVersion":"1.0.0","type":"oldone"}`,
		"unknown":   `{"cniVersion":"9.9.9","type":"oldone"}`,
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			n.define(name, "", config)
			n.goesWithoutTrace(n.addPod(name+"-pod", "plain,"+name))
			n.collect()
			if left := n.leases("ipam/plain"); len(left) != 0 {
				t.Errorf("addresses are left: %v", left)
			}
		})
	}
	t.Run("annotation", func(t *testing.T) {
		n := *n
		n.t = t
		n.goesWithoutTrace(n.addPod("asks", `[{"name":"plain","cni-args":{"ips":5}}]`))
	})
	t.Run("fix for an unsupported version", func(t *testing.T) {
		n := *n
		n.t = t
		n.define("old", "", `{"cniVersion":"1.1.0","type":"oldone"}`)
		n.refuse("ADD", n.addPod("old", "old"), 1, "network default/old", "plugins that support 1.1.0")
	})
}

// TestAFailureThatMayPassIsTriedAgain proves that a DEL that asks for a retry is
// retried, although its ADD never completed.
func TestAFailureThatMayPassIsTriedAgain(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.define("busy", "", `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"error":{"code":7,"msg":"no"}},"DEL":{"error":{"code":11,"msg":"not yet"}}}}`)
	p := n.addPod("pod", "busy")
	before := n.state()
	n.refuse("ADD", p, 7)
	n.refuse("DEL", p, 11, "not yet", "network default/busy")
	n.patchJournal(p, `"code":11`, `"code":12`)
	n.succeed("DEL", p)
	n.unchanged(before)
}

// TestWhatAPluginMadeAndKeepsIsNotDeleted covers a refused ADD that leaves an
// interface in the sandbox while every DEL is refused, too. The interface may be
// one of the host's, so it stays, and the pod with it, until somebody removes the
// interface or the sandbox.
func TestWhatAPluginMadeAndKeepsIsNotDeleted(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	const refuses = `"DEL":{"error":{"code":77,"msg":"switch is busy"}}`
	takeAway := func(p *pod) {
		n.must(p.ns.Do(func() error {
			l, err := netlinksafe.LinkByName("net1")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
	}
	for name, tc := range map[string]struct {
		first   string // the plugin that brings the interface
		release func(*pod)
	}{
		"created, then removed": {"", takeAway},
		"created, sandbox gone": {"", func(p *pod) { n.must(p.ns.Delete()) }},
		"of the host's devices": {`"device":"nic0",`, takeAway},
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			n.define("keeps", "", `{"cniVersion":"1.0.0","name":"keeps","plugins":[{"type":"scripted",`+tc.first+`"script":{`+refuses+`}},
				{"type":"scripted","script":{"ADD":{"error":{"code":7,"msg":"no"}},`+refuses+`}}]}`)
			n.must(os.RemoveAll(n.path("calls")))
			p := n.addPod("pod", "keeps")
			before := n.state()
			if tc.first != "" {
				n.device("nic0")
			}
			n.refuse("ADD", p, 7, "network default/keeps")
			for range 2 {
				n.refuse("DEL", p, 77, "network default/keeps", "still in the sandbox", "nsenter --net="+p.NetNS, "net1")
				n.interfaceOf(p, "net1")
			}
			tc.release(p)
			n.succeed("DEL", p)
			n.settles(func() string { return withoutGone(before.Diff(n.state())) })
		})
	}
}

// TestAPluginThatFailsInDELKeepsNoOtherFromIt proves that the earlier plugins of a
// chain are released, and that the pod stays until the failed plugin has succeeded
// as well.
func TestAPluginThatFailsInDELKeepsNoOtherFromIt(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	quiet := `,"script":{"ADD":{"stdout":"{}"}}`
	fails := `,"script":{"ADD":{"stdout":"{}"},"DEL":{"error":{"code":77,"msg":"switch is busy"}}}`
	n.define("chain", "", `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge","bridge":"br-plain",
		"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","subnet":"10.89.0.0/16"}},`+n.scripted(fails)+`,`+n.scripted(quiet)+`]}`)
	p := n.addPod("pod", "chain")
	before := n.state()
	n.succeed("ADD", p)
	n.must(os.Remove(n.path("calls")))
	n.refuse("DEL", p, 77, "switch is busy")
	n.emptySandbox(p)
	if left := n.leases("ipam/plain"); len(left) != 0 {
		t.Errorf("addresses are left: %v", left)
	}
	for _, c := range n.calls("DEL") {
		if len(c.Stdin.PrevResult) == 0 {
			t.Error("a plugin was not given the result of ADD")
		}
	}
	n.refuse("DEL", p, 77, "switch is busy")
	n.patchJournal(p, `"DEL":{"error":{"code":77,"msg":"switch is busy"}}`, `"DEL":{}`)
	n.succeed("DEL", p)
	n.unchanged(before)
}

// TestABrokenDefaultNetworkMakesNoPodUndeletable proves that DEL does not need the
// broken file if nothing was attached.
func TestABrokenDefaultNetworkMakesNoPodUndeletable(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(os.WriteFile(n.path("bin/oldone"), []byte(oldDelegate), 0o755))
	for name, plugins := range map[string]string{
		"9.9.9":          `{"type":"bridge","bridge":"cni0"}`,
		"1.0.0":          `{"type":"oldone"}`,
		"1.0.0 missing":  `{"type":"nonesuch"}`,
		"1.0.0 path":     `{"type":"../../bin/sh"}`,
		"1.0.0 typeless": `{"bridge":"cni0"}`,
		"1.0.0 mtu":      `{"type":"bridge","bridge":"cni0","mtu":"abc"}`,
		"1.0.0 subnet":   `{"type":"bridge","bridge":"cni0","ipam":{"type":"host-local","subnet":"nonsense"}}`,
		"1.0.0 itself":   `{"type":"manifold"}`,
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			version, _, _ := strings.Cut(name, " ")
			n.setDefault(version, plugins)
			n.goesWithoutTrace(n.addPod("pod", ""))
		})
	}
	// While the interface exists, something was attached.
	n.setDefault("1.0.0", n.scripted(`,"script":{"DEL":{"error":{"code":77,"msg":"switch is busy"}}}`))
	p := n.addPod("older", "")
	n.succeed("ADD", p)
	n.must(errors.Join(os.Remove(n.path("state/"+p.ID+"@eth0.journal")), os.RemoveAll(n.path("state/results"))))
	n.refuse("DEL", p, 77, "switch is busy", "network cluster-net")
}

// TestTheLongestNameOfADefinition proves that files named after a definition have
// valid names.
func TestTheLongestNameOfADefinition(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	label := strings.Repeat("a", 60)
	name := strings.Join([]string{label, label, label, label}, ".")
	n.define(name, nicA, `{"cniVersion":"1.0.0","name":"short","type":"host-device","capabilities":{"deviceID":true,"CNIDeviceInfoFile":true}}`)
	p := n.addPod("pod", name, "c1")
	n.allocate(p, "c1", nicA, n.device("nic0"))
	before := n.state()
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.unchanged(before)
}

// rawKey sets a key of the plugin's configuration to a JSON value, verbatim.
func (n *node) rawKey(key, value string) {
	n.t.Helper()
	var conf map[string]json.RawMessage
	n.must(json.Unmarshal(n.rt.Conf, &conf))
	conf[key] = json.RawMessage(value)
	raw, err := json.Marshal(conf)
	n.must(err)
	n.rt.Conf = raw
}
