package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestEveryVerbTakesTheSameDefaultNetwork proves that ADD, STATUS, GC, and DEL of
// an unknown sandbox all use the same default network, with an agent and without
// one.
func TestEveryVerbTakesTheSameDefaultNetwork(t *testing.T) {
	plugin := func(n *node, log string) string { return fmt.Sprintf(`{"type":"scripted","log":%q}`, n.path(log)) }
	list := func(n *node, log string) string {
		return `{"cniVersion":"1.1.0","name":"cluster-net","plugins":[` + plugin(n, log) + `]}`
	}
	for name, tc := range map[string]struct {
		definition func(*node) string // nil for none
		file       bool
		want       string // log of the network that is used; empty if none is
	}{
		"definition and file":                 {func(n *node) string { return list(n, "of-definition") }, true, "of-definition"},
		"only a definition":                   {func(n *node) string { return list(n, "of-definition") }, false, "of-definition"},
		"definition without a name":           {func(n *node) string { return `{"plugins":[` + plugin(n, "of-definition") + `]}` }, true, "of-definition"},
		"single configuration without a name": {func(n *node) string { return plugin(n, "of-definition") }, true, "of-definition"},
		"definition that names a file":        {func(*node) string { return " " }, true, "of-file"},
		"only a file":                         {nil, true, "of-file"},
		"broken definition and file":          {func(*node) string { return "{" }, true, ""},
	} {
		for mode, served := range map[string]bool{"agent": true, "no agent": false} {
			t.Run(name+", "+mode, func(t *testing.T) {
				n := newNode(t, map[string]any{"multusNamespace": "default"})
				n.must(os.Remove(n.path("net.d/10-default.conflist")))
				if tc.file {
					n.file("net.d/10-default.conflist", list(n, "of-file"))
				}
				if tc.definition != nil {
					n.define("cluster-net", "", tc.definition(n))
				}
				if served {
					n.serve()
				}
				p, unknown := n.addPod("pod", ""), n.addPod("unknown", "")
				if tc.want == "" {
					n.refuse("STATUS", &pod{}, 50, "default/cluster-net")
					n.refuse("ADD", p, 103, "network default/cluster-net")
				} else {
					n.succeed("STATUS", &pod{})
					n.succeed("ADD", p)
					n.succeed("CHECK", p)
				}
				n.collect(p, unknown)
				n.succeed("DEL", p)
				n.succeed("DEL", unknown)
				for _, log := range []string{"of-definition", "of-file"} {
					want := ""
					if log == tc.want {
						want = "STATUS, ADD eth0, CHECK eth0, GC, DEL eth0, DEL eth0"
					}
					if got := n.sequenceIn(log); got != want {
						t.Errorf("%s: calls %q, want %q", log, got, want)
					}
				}
			})
		}
	}
}

// TestNamelessDefaultNetworkOfALostJournal proves that DEL releases the network
// under the name and in the version that ADD gave it.
func TestNamelessDefaultNetworkOfALostJournal(t *testing.T) {
	n := newNode(t, map[string]any{"clusterNetwork": ""})
	n.serve()
	n.rawKey("delegates", fmt.Sprintf(`[{"type":"scripted","log":%q}]`, n.path("calls")))
	p := n.addPod("pod", "")
	n.succeed("ADD", p)
	n.must(os.RemoveAll(n.path("state")))
	n.succeed("DEL", p)
	n.emptySandbox(p)
	calls := n.calls("ADD", "DEL")
	if len(calls) != 2 || calls[0].Stdin.Name != "manifold" || calls[1].Stdin.Name != "manifold" || calls[0].Stdin.CNIVersion != calls[1].Stdin.CNIVersion {
		t.Errorf("calls %v", calls)
	}
}

// TestChainOfADefaultNetworkThatIsADefinition proves that the plugins of
// auxiliaryCNIChainName take part in STATUS and GC.
func TestChainOfADefaultNetworkThatIsADefinition(t *testing.T) {
	n := newNode(t, map[string]any{"multusNamespace": "default", "auxiliaryCNIChainName": "more"})
	n.serve()
	n.define("cluster-net", "", `{"cniVersion":"1.1.0","plugins":[{"type":"scripted"}]}`)
	n.must(os.Mkdir(n.path("net.d/more"), 0o755))
	n.file("net.d/more/10-last.conf", fmt.Sprintf(`{"type":"scripted","log":%q,"script":{"ADD":{"stdout":"{\"cniVersion\":\"1.1.0\"}"},"DEL":{"stdout":"\n"}}}`, n.path("chained")))
	p := n.addPod("pod", "")
	n.succeed("STATUS", &pod{})
	n.succeed("ADD", p)
	n.collect(p)
	n.succeed("DEL", p)
	if got, want := n.sequenceIn("chained"), "STATUS, ADD eth0, GC, DEL eth0"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// wrapper is the scripted delegate with another answer to VERSION. It refuses
// versions from 1.0.0 on.
const wrapper = `#!/bin/sh
conf=$(cat)
case "$CNI_COMMAND $conf" in
VERSION*) echo '%s'; exit ;;
*'"cniVersion":"1.'*) echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1 ;;
esac
printf %%s "$conf" | exec "${0%%/*}/scripted"
`

// TestNetworkWithoutVersion proves that such a network gets the highest version
// that its programs support, the same in every verb.
func TestNetworkWithoutVersion(t *testing.T) {
	n := newNode(t, map[string]any{"clusterNetwork": ""})
	n.serve()
	for program, says := range map[string]string{"until-04": `{"cniVersion":"0.4.0","supportedVersions":["0.2.0","0.4.0","0.3.1"]}`, "mute": "usage"} {
		n.must(os.WriteFile(n.path("bin/"+program), fmt.Appendf(nil, wrapper, says), 0o755))
	}
	network := func(plugin, more string) string {
		return fmt.Sprintf(`{"type":%q,"log":%q%s}`, plugin, n.path("calls"), more)
	}
	n.rawKey("delegates", `[`+network("scripted", "")+`]`)
	n.define("mute", "", network("mute", `,"addresses":["10.1.2.3/24"]`)) // a result of 0.1.0 must have an address
	n.define("old", "", network("until-04", ""))
	n.define("ipam", "", network("scripted", `,"ipam":{"type":"until-04"}`))
	n.define("chain", "", `{"plugins":[`+network("scripted", "")+`,`+network("until-04", `,"script":{"ADD":{"stdout":"{}"}}`)+`]}`)
	p := n.addPod("pod", "mute,old,ipam,chain")
	n.succeed("STATUS", &pod{})
	n.succeed("ADD", p)
	n.succeed("CHECK", p)
	n.collect(p)
	n.succeed("DEL", p)
	want := map[string]string{"eth0": "1.1.0", "net1": "0.1.0", "net2": "0.4.0", "net3": "0.4.0", "net4": "0.4.0"}
	seen := map[string]bool{}
	for _, c := range n.calls("ADD", "CHECK", "DEL") {
		seen[c.Verb+c.IfName] = true
		if c.Stdin.CNIVersion != want[c.IfName] {
			t.Errorf("%s of %s: version %q, want %s", c.Verb, c.IfName, c.Stdin.CNIVersion, want[c.IfName])
		}
	}
	if got := n.calls("STATUS", "GC"); len(got) != 2 || got[0].Stdin.Name == "" || got[0].Stdin.Name != got[1].Stdin.Name || !strings.Contains(got[1].raw, p.ID) {
		t.Errorf("STATUS and GC of the nameless default network: %v", got)
	}
	for ifName, version := range want {
		if !seen["ADD"+ifName] || !seen["DEL"+ifName] || seen["CHECK"+ifName] != (version != "0.1.0") {
			t.Errorf("%s: calls %v", ifName, seen)
		}
	}
}
