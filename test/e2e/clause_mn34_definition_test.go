package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestClauseDefinition proves section 3 of the multi-network specification: which
// configuration a definition stands for, and in what form it runs.
func TestClauseDefinition(t *testing.T) {
	for id, prove := range map[string]func(*witness){
		"MN-3.4.1-inline":      (*witness).inlineConfig,
		"MN-3.4.1-conflist":    (*witness).conflistOnDisk,
		"MN-3.4.1-conf":        (*witness).confOnDisk,
		"MN-3.4.1-none":        (*witness).noConfig,
		"MN-3.4.2-name":        (*witness).nameInjected,
		"MN-3.2-conf-and-list": (*witness).confAndList,
		"MN-3.3-naming":        (*witness).naming,
	} {
		t.Run(id, func(t *testing.T) { prove(newWitness(t)) })
	}
}

// onDisk writes a network's configuration file, which is a list if the file is a
// .conflist. Its delegate gets the file's name as "from".
func (w *witness) onDisk(file, name string) {
	w.t.Helper()
	p := w.plugin(map[string]any{"from": file})
	conf := map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": []any{p}}
	if !strings.HasSuffix(file, ".conflist") {
		p["cniVersion"], p["name"] = "1.0.0", name
		conf = p
	}
	w.file("net.d/"+file, w.json(conf))
}

// runs attaches a pod to the network "net" and fails unless its single delegate has
// this "from".
func (w *witness) runs(from string) {
	w.t.Helper()
	p, calls := w.attach("net", 1)
	w.is(calls[0], `"`+from+`"`, "from")
	w.is(calls[0], `"net"`, "name")
	w.detach(p)
}

// inlineConfig checks that spec.config takes precedence over files with the
// object's name.
func (w *witness) inlineConfig() {
	w.onDisk("20-net.conflist", "net")
	w.onDisk("20-net.conf", "net")
	w.network("net", map[string]any{"from": "definition"})
	w.runs("definition")
}

// conflistOnDisk checks that without spec.config a list with the object's name
// runs, even if a single configuration sorts before it. The name of the file does
// not matter.
func (w *witness) conflistOnDisk() {
	w.define("net", "", "")
	w.onDisk("20-first.conf", "net")
	w.onDisk("net.conflist", "another")
	w.onDisk("90-last.conflist", "net")
	w.runs("90-last.conflist")
}

// confOnDisk checks that without such a list, a .conf or .json with the object's
// name runs.
func (w *witness) confOnDisk() {
	w.define("net", "", "")
	w.onDisk("net.conflist", "another")
	w.onDisk("net.conf", "yet-another")
	for _, file := range []string{"30-single.conf", "20-single.json"} {
		w.onDisk(file, "net")
		w.runs(file)
	}
}

// noConfig checks that there is neither spec.config nor a file with that JSON name.
// A file that only has the name itself, or another extension, does not count.
func (w *witness) noConfig() {
	w.define("net", "", "")
	w.onDisk("net.conflist", "another")
	w.onDisk("net.conf", "another")
	w.onDisk("net.conf.bak", "net")
	w.refusedWithoutTrace(w.addPod("app", "net"), 103, "network default/net", "no spec.config", w.path("net.d"), `"net"`)
}

// nameInjected checks that every plugin gets the object's name if the configuration
// has none, and the configuration's name otherwise.
func (w *witness) nameInjected() {
	w.network("single", nil)
	w.chain("list", nil, w.plugin(nil), w.follower(nil))
	w.network("named-single", map[string]any{"name": "own-1"})
	w.chain("named-list", map[string]any{"name": "own-2"}, w.plugin(nil), w.follower(nil))
	p, calls := w.attach("single,list,named-single,named-list", 6)
	for i, want := range []string{"single", "list", "list", "own-1", "own-2", "own-2"} {
		w.is(calls[i], `"`+want+`"`, "name")
	}
	w.detach(p)
}

// confAndList checks that both a single configuration and a list run. The list
// keeps its order, its version, the results passed between its plugins, and its
// flags.
func (w *witness) confAndList() {
	first, second := w.plugin(map[string]any{"step": 1}), w.follower(map[string]any{"step": 2})
	w.network("single", map[string]any{"cniVersion": "0.3.1", "step": 0})
	w.chain("list", map[string]any{"cniVersion": "0.4.0"}, first, second)
	w.chain("latest", map[string]any{"cniVersion": "1.1.0"}, w.plugin(map[string]any{"step": 4}))
	w.chain("flags", map[string]any{"cniVersion": "1.1.0", "disableCheck": true, "disableGC": true}, w.plugin(map[string]any{"step": 3}))
	w.network("single-flags", map[string]any{"cniVersion": "1.1.0", "disableCheck": true, "disableGC": true, "step": 5})
	p, calls := w.attach("single,list,latest,flags,single-flags", 6)
	for i, version := range []string{"0.3.1", "0.4.0", "0.4.0", "1.1.0", "1.1.0", "1.1.0"} {
		w.is(calls[i], `"`+version+`"`, "cniVersion")
	}
	w.is(calls[1], `null`, "prevResult")
	for _, want := range []string{`"cniVersion":"0.4.0"`, `"name":"net2"`, p.NetNS} {
		if got := calls[2].at("prevResult"); !strings.Contains(got, want) {
			w.t.Errorf("the second plugin got prevResult %s, which lacks %s", got, want)
		}
	}
	w.succeed("CHECK", p)
	w.collectAllBut(p)
	w.detach(p)
	for verb, want := range map[string]string{"ADD": "0 1 2 4 3 5", "CHECK": "1 2 4", "DEL": "5 3 4 2 1 0", "GC": "4"} {
		if got := w.steps(verb); got != want {
			w.t.Errorf("%s ran the plugins %s, want %s", verb, got, want)
		}
	}
}

// steps returns the plugins that a verb ran, in order.
func (w *witness) steps(verb string) string {
	w.t.Helper()
	var out []string
	for _, c := range w.calls(verb) {
		out = append(out, c.at("step"))
	}
	return strings.Join(out, " ")
}

// collectAllBut runs GC with one valid sandbox.
func (w *witness) collectAllBut(p *pod) {
	w.t.Helper()
	rt := w.rt
	w.withConf(map[string]any{"cni.dev/valid-attachments": []any{map[string]string{"containerID": p.ID, "ifname": "eth0"}}})
	w.succeed("GC", &pod{})
	w.rt = rt
}

// naming checks that names and namespaces that no object can have are refused,
// unlike dots in a name.
func (w *witness) naming() {
	w.network("net.one-2.x", nil)
	p, calls := w.attach("net.one-2.x,default/net.one-2.x", 2)
	w.is(calls[0], `"net.one-2.x"`, "name")
	w.detach(p)
	for i, annotation := range []string{
		"Net", "a_b", "-a", "a-", "a..b", ".a", "a.", strings.Repeat("a", 64), strings.Repeat("a.", 127), "näme",
		"Ns/net", "n.s/net", "n_s/net", "/net", "ns/", "ns/net/x", strings.Repeat("n", 64) + "/net",
		`[{"name":"Net"}]`, `[{"name":""}]`, `[{"namespace":"ns"}]`, `[{"name":"net","namespace":"n.s"}]`, `[{"name":"ns/net"}]`,
	} {
		p := w.addPod(fmt.Sprintf("refused-%d", i), annotation)
		w.refusedWithoutTrace(p, 101, "entry 1", "k8s.v1.cni.cncf.io/networks")
	}
	if calls := w.calls("ADD"); !slices.EqualFunc(calls, []string{"net1", "net2"}, func(c told, name string) bool { return c.IfName == name }) {
		w.t.Errorf("a delegate ran for a refused annotation: %+v", calls)
	}
}
