package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// annotate sets an annotation of a pod.
func (n *node) annotate(p *pod, key, value string) {
	n.t.Helper()
	file := "pods/" + p.Name + ".json"
	raw, err := os.ReadFile(n.path(file))
	n.must(err)
	var object map[string]any
	n.must(json.Unmarshal(raw, &object))
	meta, _ := object["metadata"].(map[string]any)
	annotations, _ := meta["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	annotations[key] = value
	raw, err = json.Marshal(object)
	n.must(err)
	n.file(file, string(raw))
}

// attached returns the calls of a verb as "interface network" and removes the log.
func (n *node) attached(verb string) string {
	n.t.Helper()
	var out []string
	for _, c := range n.calls(verb) {
		out = append(out, c.IfName+" "+c.Stdin.Name)
	}
	n.must(os.RemoveAll(n.path("calls")))
	return strings.Join(out, ", ")
}

// lives adds, checks and deletes a pod with these attachments. between runs after
// ADD.
func (n *node) lives(p *pod, want string, between func()) {
	n.t.Helper()
	n.succeed("ADD", p)
	if got := n.attached("ADD"); got != want {
		n.t.Errorf("attached %q, want %q", got, want)
	}
	between()
	n.succeed("CHECK", p)
	if got := n.attached("CHECK"); got != want {
		n.t.Errorf("checked %q, want %q", got, want)
	}
	n.succeed("DEL", p)
	n.emptySandbox(p)
	n.must(os.RemoveAll(n.path("calls")))
}

// TestDefaultNetworks proves that each element is resolved like clusterNetwork,
// with and without an agent, and that CHECK and DEL still work when its source is
// gone.
func TestDefaultNetworks(t *testing.T) {
	n := newNode(t, nil)
	n.setDefault("1.0.0", n.scripted(`,"addresses":["10.76.0.2/24"]`))
	n.must(os.MkdirAll(n.path("dir"), 0o755))
	network := func(name string) string { return n.scripted(fmt.Sprintf(`,"name":%q`, name)) }
	write := func() {
		n.defineIn("kube-system", "both", "", network("by-definition"))
		n.defineIn("team", "own", "", network("of-a-namespace"))
		n.file("net.d/20-both.conf", network("both"))
		n.file("net.d/30-disk.conf", network("Disk_net"))
		n.file("dir/00-readme.txt", "no configuration")
		n.file("dir/10-first.conf", network("first"))
		n.file("dir/20-second.conf", network("second"))
	}
	n.withConf(map[string]any{"defaultNetworks": []string{"both", "Disk_net@a7", n.path("dir"), n.path("dir/20-second.conf"), "team/own"}})
	want := "eth0 cluster-net, net1 by-definition, a7 Disk_net, net3 first, net4 second, net5 of-a-namespace"
	gone := func() {
		for _, name := range []string{"net.d/20-both.conf", "net.d/30-disk.conf", "dir/10-first.conf", "dir/20-second.conf", definitionFile("kube-system", "both"), definitionFile("team", "own")} {
			n.must(os.Remove(n.path(name)))
		}
	}
	write()
	n.lives(n.addPod("alone", ""), want, gone)
	write()
	n.serve()
	n.lives(n.addPod("served", ""), want, gone)

	write()
	n.withConf(map[string]any{"systemNamespaces": []string{"default"}})
	n.lives(n.addPod("system", ""), "eth0 cluster-net", func() {})
	n.withConf(map[string]any{"systemNamespaces": []string{"kube-system"}})
	for entry, parts := range map[string][]string{
		"nowhere":         {"definition kube-system/nowhere", "configuration in " + n.path("net.d"), "create the definition"},
		"team/both":       {"definition team/both", "create the definition"},
		n.path("nowhere"): {n.path("nowhere"), "put a configuration there"},
		n.path("pods"):    {n.path("pods"), "no network configuration", "put a configuration there"},
	} {
		n.withConf(map[string]any{"defaultNetworks": []string{entry}})
		n.refusedWithoutTrace(n.addPod("lost", ""), 11, append(parts, "defaultNetworks", "or correct")...)
	}
	n.withConf(map[string]any{"defaultNetworks": []string{"both", "[{"}})
	n.refuse("ADD", n.addPod("wrong", ""), 7, "defaultNetworks", "element 2", "does not name a network")
	// Pods cannot name what is for the administrator to name.
	n.withConf(map[string]any{"defaultNetworks": []string{}})
	n.refusedWithoutTrace(n.addPod("file", n.path("dir")), 101)
	n.refusedWithoutTrace(n.addPod("name", "cluster-net"), 102, "default/cluster-net")
}

// TestDefaultNetworkAnnotation covers a pod's own choice of its default network.
func TestDefaultNetworkAnnotation(t *testing.T) {
	const key = "v1.multus-cni.io/default-network"
	n := newScriptedNode(t, nil)
	n.defineIn("kube-system", "other", "", n.scripted(`,"name":"other-net","addresses":["10.77.0.2/24"]`))
	n.defineIn("team", "theirs", "", n.scripted(`,"name":"their-net"`))
	chosen := func(name, value, networks string) *pod {
		p := n.addPod(name, networks)
		n.annotate(p, key, value)
		return p
	}
	kept := func() {}
	n.lives(chosen("by-name", "other", "one"), "eth0 other-net, net1 one", func() { n.must(os.Remove(n.path(definitionFile("kube-system", "other")))) })
	n.defineIn("kube-system", "other", "", n.scripted(`,"name":"other-net"`))
	n.lives(chosen("by-namespace", "default/two", ""), "eth0 two", kept)
	n.lives(chosen("as-json", `[{"name":"theirs","namespace":"team"}]`, ""), "eth0 their-net", kept)
	n.refusedWithoutTrace(chosen("nowhere", "nowhere", "one"), 102, "network kube-system/nowhere", "no such NetworkAttachmentDefinition")
	n.refusedWithoutTrace(chosen("on-disk", "cluster-net", "one"), 102, "network kube-system/cluster-net")
	n.refusedWithoutTrace(chosen("two", "other,default/two", "one"), 101, key, "selects 2 networks but must select one", "keep one network in it")
	for name, value := range map[string]string{"null": "[null]", "path": "/etc/cni/net.d", "empty": "[]"} {
		n.refusedWithoutTrace(chosen(name, value, "one"), 101, key)
	}

	n.withConf(map[string]any{"invalidAnnotation": "ignore"})
	n.lives(chosen("ignored", "[null]", "one"), "eth0 cluster-net, net1 one", kept)
	n.lives(chosen("both-ignored", "other,default/two", "[null]"), "eth0 cluster-net", kept)
	n.refusedWithoutTrace(chosen("still-nowhere", "nowhere", "one"), 102, "network kube-system/nowhere")

	n.withConf(map[string]any{"namespaceIsolation": true})
	n.lives(chosen("own", "default/two", "one"), "eth0 two, net1 one", kept)
	for name, value := range map[string]string{"system": "other", "foreign": "team/theirs"} {
		n.refusedWithoutTrace(chosen(name, value, "one"), 104, "namespaceIsolation", "globalNamespaces")
	}
	n.withConf(map[string]any{"globalNamespaces": "kube-system"})
	n.lives(chosen("global", "other", "one"), "eth0 other-net, net1 one", kept)
}
