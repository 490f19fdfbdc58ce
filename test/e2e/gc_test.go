package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/harness"
)

// collected is the input of a delegate in one GC.
type collected struct {
	Name  string              `json:"name"`
	Valid []map[string]string `json:"cni.dev/valid-attachments"`
}

// gcs returns the GC calls in a scripted delegate's log and removes the log.
func (n *node) gcs(log string) []collected {
	n.t.Helper()
	text, err := os.ReadFile(log)
	n.must(err)
	n.must(os.Remove(log))
	var out []collected
	for line := range bytes.Lines(text) {
		var call struct {
			Verb  string    `json:"verb"`
			Stdin collected `json:"stdin"`
		}
		n.must(json.Unmarshal(line, &call))
		if call.Verb == "GC" {
			out = append(out, call.Stdin)
		}
	}
	return out
}

// collect runs GC with these sandboxes as the runtime's valid attachments.
func (n *node) collect(valid ...*pod) {
	n.t.Helper()
	n.collectWithin("", valid...)
}

// collectWithin is collect with a gcGrace, empty for none; it returns the log.
func (n *node) collectWithin(grace string, valid ...*pod) string {
	n.t.Helper()
	list := []map[string]string{}
	for _, p := range valid {
		list = append(list, attachment(p, "eth0"))
	}
	gc := *n // another call may be under way
	conf := map[string]any{"cni.dev/valid-attachments": list}
	if grace != "" {
		conf["gcGrace"] = grace
	}
	gc.withConf(conf)
	return string(gc.succeed("GC", &pod{}).Stderr)
}

func attachment(p *pod, ifName string) map[string]string {
	return map[string]string{"containerID": p.ID, "ifname": ifName}
}

// gcNode returns a node with a definition whose delegate logs its calls, and the
// path of the log.
func gcNode(t *testing.T, addScript string) (*node, string) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	log := n.path("calls")
	n.define("logged", "", `{"cniVersion":"1.1.0","name":"logged-net","type":"scripted","log":"`+log+`","script":{`+addScript+`}}`)
	return n, log
}

// expect fails unless the log has one GC with these attachments.
func (n *node) expect(log string, want ...map[string]string) {
	n.t.Helper()
	if want == nil {
		want = []map[string]string{}
	}
	got := n.gcs(log)
	if len(got) != 1 || got[0].Name != "logged-net" || !reflect.DeepEqual(got[0].Valid, want) {
		n.t.Errorf("the delegate's GC was given %v, want %v", got, want)
	}
}

func TestGCIsPassedOnWithTheDelegatesOwnAttachments(t *testing.T) {
	n, log := gcNode(t, "")
	keep, stale := n.addPod("keep", "plain,logged"), n.addPod("stale", "logged,logged@extra")
	n.succeed("ADD", keep)
	n.succeed("ADD", stale)
	n.collect(keep)
	n.expect(log, attachment(keep, "net2"))
	n.succeed("CHECK", keep)
	n.refuse("CHECK", stale, 3, "not attached")
	n.must(os.Remove(log))
	n.collect()
	n.expect(log)
	n.refuse("CHECK", keep, 3, "not attached")
}

func TestGCLeavesASandboxAloneThatIsBeingAdded(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	gate, log := n.path("gate"), n.path("calls")
	n.define("logged", "", `{"cniVersion":"1.1.0","name":"logged-net","type":"scripted","log":"`+log+`","script":{"ADD":{"gate":"`+gate+`"}}}`)
	p := n.addPod("pod", "plain,logged")
	added := make(chan *harness.Result)
	go func() { added <- n.call("ADD", p) }()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	n.collect()
	n.expect(log, attachment(p, "net2"))
	n.file("gate", "")
	if res := <-added; res.Status != 0 {
		t.Errorf("ADD: %s", res.Stdout)
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}

// TestGCSparesASandboxThatWasAddedWhileItRan covers an ADD that was under way when
// the runtime made its list and that ends before GC reaches its sandbox.
func TestGCSparesASandboxThatWasAddedWhileItRan(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	gate := func(verb string) string { return n.path("gate-" + verb) }
	for _, verb := range []string{"ADD", "DEL"} {
		n.define(strings.ToLower(verb), "", strings.Replace(n.scripted(`,"script":{"`+verb+`":{"gate":"`+gate(verb)+`"}}`), "1.0.0", "1.1.0", 1))
	}
	stale, young := n.addPod("stale", "del"), n.addPod("young", "add") // in the order of their IDs, which is GC's order
	n.succeed("ADD", stale)
	added, collected := make(chan *harness.Result), make(chan struct{})
	go func() { added <- n.call("ADD", young) }()
	n.eventually("the ADD", func() bool { return exists(gate("ADD") + ".reached") })
	go func() { defer close(collected); n.collect() }()
	n.eventually("the first sandbox's DEL", func() bool { return exists(gate("DEL") + ".reached") })
	n.file("gate-ADD", "")
	if res := <-added; res.Status != 0 {
		t.Errorf("ADD: %s", res.Stdout)
	}
	n.file("gate-DEL", "")
	<-collected
	n.refuse("CHECK", stale, 3, "not attached")
	n.succeed("CHECK", young)
	for _, gc := range n.gcs(n.path("calls")) {
		if want := []map[string]string{attachment(young, "net1")}; gc.Name == "add" && !reflect.DeepEqual(gc.Valid, want) {
			t.Errorf("the delegate's GC was given %v, want %v", gc.Valid, want)
		}
	}
	n.succeed("DEL", young)
}

// TestGCSparesASandboxThatTheRuntimeMayNotHaveKnownYet covers an ADD that ended
// before GC began, although the runtime may have made its list earlier. The next GC
// collects the sandbox.
func TestGCSparesASandboxThatTheRuntimeMayNotHaveKnownYet(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.TrimSpace(string(boot))
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	mark := func(boot string, after time.Duration) func(*node, *pod) {
		return func(n *node, p *pod) {
			n.file("state/"+p.ID+"@eth0.lock", fmt.Sprintf("%s %020d\n", boot, now.Nano()+after.Nanoseconds()))
		}
	}
	asIs := func(*node, *pod) {}
	failedDEL := func(n *node, p *pod) {
		program := filepath.Join(n.bin, "scripted")
		n.must(os.Rename(program, program+".away"))
		n.refuse("DEL", p, 115, "scripted")
		n.must(os.Rename(program+".away", program))
	}
	for name, tc := range map[string]struct {
		grace  string
		change func(*node, *pod)
		spared bool
	}{
		"within the grace":       {"1h", asIs, true},
		"before the grace":       {"30s", mark(own, -time.Hour), false},
		"without a grace":        {"", asIs, false},
		"in the future":          {"", mark(own, 1000*time.Hour), false},
		"in another boot":        {"1h", mark("another", 0), false},
		"at an unknown time":     {"1h", func(n *node, p *pod) { n.file("state/"+p.ID+"@eth0.lock", "") }, false},
		"its namespace is gone":  {"1h", func(n *node, p *pod) { n.must(p.ns.Delete()) }, false},
		"its DEL failed already": {"1h", failedDEL, false},
	} {
		t.Run(name, func(t *testing.T) {
			n, log := gcNode(t, "")
			p := n.addPod("pod", "logged")
			n.succeed("ADD", p)
			tc.change(n, p)
			said := n.collectWithin(tc.grace)
			if got := strings.Contains(said, "spares sandbox "+p.ID); got != tc.spared {
				t.Errorf("logged that the sandbox is spared: %v; %s", got, said)
			}
			if !tc.spared {
				n.expect(log)
				n.refuse("CHECK", p, 3, "not attached")
				return
			}
			n.expect(log, attachment(p, "net1"))
			n.succeed("CHECK", p)
			n.collect()
			n.expect(log)
			n.refuse("CHECK", p, 3, "not attached")
		})
	}
}

func TestGCLeavesASandboxAloneThatIsBeingDeleted(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	gate, log := n.path("gate"), n.path("calls")
	n.define("logged", "", `{"cniVersion":"1.0.0","name":"logged-net","type":"scripted","log":"`+log+`","script":{"DEL":{"gate":"`+gate+`"}}}`)
	p := n.addPod("pod", "plain,logged")
	n.succeed("ADD", p)
	deleted := make(chan *harness.Result)
	go func() { deleted <- n.call("DEL", p) }()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	n.collect() // the runtime does not list it any more
	n.file("gate", "")
	if res := <-deleted; res.Status != 0 {
		t.Errorf("DEL: %s", res.Stdout)
	}
	if calls := n.calls("DEL"); len(calls) != 1 {
		t.Errorf("the delegate's DEL was called %d times", len(calls))
	}
}

// TestGCLeavesAPodOfMultusAloneThatIsBeingDeleted covers a pod that has no journal,
// only the lock, and that the runtime does not list any more. GC is passed on to
// its network, or the network has no other attachment.
func TestGCLeavesAPodOfMultusAloneThatIsBeingDeleted(t *testing.T) {
	for name, tc := range map[string]struct{ network, lose string }{
		"default network":  {"cluster-net", "none"},
		"without libcni's": {"cluster-net", "results"},
		"own network":      {"logged-net", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.serve()
			n.setDefault("1.1.0", n.scripted(""))
			gate, p := n.path("gate"), n.addPod("pod", "")
			text := strings.Replace(n.scripted(`,"name":"`+tc.network+`","script":{"DEL":{"gate":"`+gate+`"}}`), "1.0.0", "1.1.0", 1)
			conf, err := libcni.NetworkPluginConfFromBytes([]byte(text))
			n.must(err)
			if tc.network == "cluster-net" {
				n.file("net.d/10-default.conflist", `{"cniVersion":"1.1.0","name":"cluster-net","plugins":[`+text+`]}`)
			}
			cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
			_, err = cni.AddNetwork(context.Background(), conf, &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: "eth0"})
			n.must(err)
			n.file("state/"+p.ID, fmt.Sprintf(`[{"Conf":%s,"Bytes":%q}]`, text, base64.StdEncoding.EncodeToString([]byte(text))))
			n.must(os.RemoveAll(n.path("state/" + tc.lose)))
			deleted := make(chan *harness.Result)
			go func() { deleted <- n.call("DEL", p) }()
			n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
			collected := make(chan struct{})
			go func() { defer close(collected); n.collect() }()
			n.eventually("the end of GC, or a second DEL", func() bool {
				select {
				case <-collected:
					return true
				default:
					return len(n.calls("DEL")) > 1
				}
			})
			n.file("gate", "")
			<-collected
			if res := <-deleted; res.Status != 0 {
				t.Errorf("DEL: %s", res.Stdout)
			}
			if calls := n.calls("DEL"); len(calls) != 1 {
				t.Errorf("the delegate's DEL was called %d times", len(calls))
			}
			for _, gc := range n.gcs(n.path("calls")) {
				if want := []map[string]string{attachment(p, "eth0")}; gc.Name == tc.network && !reflect.DeepEqual(gc.Valid, want) {
					t.Errorf("the delegate's GC was given %v, want %v", gc.Valid, want)
				}
			}
		})
	}
}

// besideMultus returns a node with a pod of its own and one that Multus attached,
// on networks whose delegates log their GC.
func besideMultus(t *testing.T) (n *node, own, p *pod) {
	t.Helper()
	n = newNode(t, nil)
	n.serve()
	n.warm()
	n.define("logged", "", strings.Replace(n.scripted(`,"name":"logged-6"`), "1.0.0", "1.1.0", 1))
	own, p = n.addPod("own", "logged"), n.addPod("pod", "")
	n.succeed("ADD", own)
	n.attachLogged(p)
	return n, own, p
}

// TestGCSparesAPodOfMultusThatTheRuntimeMayNotHaveKnownYet proves that the
// modification times of libcni's records tell when the pod's ADD ended.
func TestGCSparesAPodOfMultusThatTheRuntimeMayNotHaveKnownYet(t *testing.T) {
	for name, tc := range map[string]struct {
		written time.Duration // relative to now
		gone    bool
		spared  bool
	}{
		"within the grace":      {0, false, true},
		"before the grace":      {-2 * time.Hour, false, false},
		"in the future":         {2 * time.Hour, false, false},
		"its namespace is gone": {0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			n, own, p := besideMultus(t)
			records, err := filepath.Glob(n.path("state/results/*-" + p.ID + "-*"))
			n.must(err)
			for _, r := range records {
				n.must(os.Chtimes(r, time.Time{}, time.Now().Add(tc.written)))
			}
			if tc.gone {
				n.must(p.ns.Delete())
			}
			n.collectWithin("1h", own)
			want := []map[string]string{attachment(own, "net1")}
			if tc.spared {
				want = append(want, attachment(p, "net3"))
			}
			calls := n.calls("DEL")
			if released := len(calls) > 0; released == tc.spared {
				t.Errorf("the delegate's DEL was called: %v", calls)
			}
			if got := n.gcs(n.path("calls")); len(got) != 1 || !reflect.DeepEqual(got[0].Valid, want) {
				t.Errorf("delegates' GC was given %v, want %v", got, want)
			}
			n.succeed("DEL", own)
		})
	}
}

// TestGCTriesOnceAPodOfMultusThatCannotBeReleased proves that the GC that is passed
// on does not repeat the same DEL, and that the delegate keeps what the sandbox may
// hold.
func TestGCTriesOnceAPodOfMultusThatCannotBeReleased(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	text := strings.Replace(n.scripted(`,"name":"cluster-net","script":{"DEL":{"error":{"code":77,"msg":"switch is busy"}}}`), "1.0.0", "1.1.0", 1)
	n.setDefault("1.1.0", text)
	conf, err := libcni.NetworkPluginConfFromBytes([]byte(text))
	n.must(err)
	p := n.addPod("pod", "")
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
	_, err = cni.AddNetwork(context.Background(), conf, &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: "eth0"})
	n.must(err)
	n.withConf(map[string]any{"cni.dev/valid-attachments": []any{}})
	n.refuse("GC", &pod{}, 77, "switch is busy")
	if calls := n.calls("DEL"); len(calls) != 1 {
		t.Errorf("the delegate's DEL was called %d times", len(calls))
	}
	want := []collected{{"cluster-net", []map[string]string{attachment(p, "eth0")}}}
	if got := n.gcs(n.path("calls")); !reflect.DeepEqual(got, want) {
		t.Errorf("the delegate's GC was given %v, want %v", got, want)
	}
}

// TestGCKnowsAPodOfMultusFromEitherRecord proves that the file of Multus makes up
// for lost records of libcni. If that file cannot be read, GC cannot know whether
// the records are complete.
func TestGCKnowsAPodOfMultusFromEitherRecord(t *testing.T) {
	record := func(n *node, p *pod) string { return "state/results/logged-6-" + p.ID + "-net3" }
	for name, tc := range map[string]struct {
		lose   func(n *node, p *pod)
		passed bool
	}{
		"both":                 {func(*node, *pod) {}, true},
		"one record lost":      {func(n *node, p *pod) { n.must(os.Remove(n.path(record(n, p)))) }, true},
		"one record truncated": {func(n *node, p *pod) { n.file(record(n, p), n.read(record(n, p))[:99]) }, true},
		"without libcni's":     {func(n *node, _ *pod) { n.must(os.RemoveAll(n.path("state/results"))) }, true},
		"without its file":     {func(n *node, p *pod) { n.must(os.Remove(n.path("state/" + p.ID))) }, true},
		"its file broken":      {func(n *node, p *pod) { n.file("state/"+p.ID, "[{") }, false},
		"a delegate broken":    {func(n *node, p *pod) { n.file("state/"+p.ID, `[{"Bytes":"e30="}]`) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			n, own, p := besideMultus(t)
			tc.lose(n, p)
			n.collect(own, p)
			if calls := n.calls("DEL"); len(calls) != 0 {
				t.Errorf("a delegate's DEL was called: %v", calls)
			}
			var want []collected
			if tc.passed {
				want = []collected{{"logged-6", []map[string]string{attachment(own, "net1"), attachment(p, "net3")}}}
			}
			if got := n.gcs(n.path("calls")); !reflect.DeepEqual(got, want) {
				t.Errorf("delegates' GC was given %v, want %v", got, want)
			}
			n.succeed("DEL", own)
		})
	}
}

// TestNoSandboxBeginsWhileDelegatesCollect proves that no ADD starts during a
// delegate's GC: the sandbox would be missing from the delegate's list.
func TestNoSandboxBeginsWhileDelegatesCollect(t *testing.T) {
	n := newNode(t, map[string]any{"lockTimeout": "4m"}) // half of it is for GC
	n.serve()
	n.warm()
	gate := n.path("gate")
	n.define("logged", "", `{"cniVersion":"1.1.0","name":"logged-net","type":"scripted","log":"`+n.path("calls")+`","script":{"GC":{"gate":"`+gate+`"}}}`)
	old, young := n.addPod("old", "logged"), n.addPod("young", "logged")
	n.succeed("ADD", old)
	collected, added := make(chan struct{}), make(chan *harness.Result, 1)
	go func() { defer close(collected); n.collect(old) }()
	n.eventually("the delegate's GC", func() bool { return exists(gate + ".reached") })
	go func() { added <- n.call("ADD", young) }()
	n.eventually("the ADD to begin", func() bool { return exists(n.path("state/" + young.ID + "@eth0.lock")) })
	for range 50 { // an ADD that does not wait is noticed sooner or later; one that waits never fails here
		if exists(n.path("state/" + young.ID + "@eth0.journal")) {
			t.Fatal("a sandbox began while a delegate collected")
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.file("gate", "")
	<-collected
	if res := <-added; res.Status != 0 {
		t.Errorf("ADD: %s", res.Stdout)
	}
	n.succeed("CHECK", young)
	n.succeed("DEL", young)
	n.succeed("DEL", old)
}

func TestGCDoesNotGuessAtSandboxesOfAnotherPlugin(t *testing.T) {
	n, log := gcNode(t, "")
	p := n.addPod("pod", "logged")
	n.succeed("ADD", p)
	n.collect(p, n.addPod("older", ""))
	if got := n.gcs(log); len(got) != 0 {
		t.Errorf("the attachments of a sandbox that Manifold did not attach are unknown, yet GC was passed on: %v", got)
	}
	n.succeed("DEL", p)
}

func TestGCReachesTheDefaultNetwork(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	log := n.path("calls")
	n.file("net.d/10-default.conflist", `{"cniVersion":"1.1.0","name":"cluster-net","plugins":[{"type":"scripted","log":"`+log+`"}]}`)
	p, older := n.addPod("pod", ""), n.addPod("older", "")
	n.succeed("ADD", p)
	n.collect(p, older)
	want := []map[string]string{attachment(p, "eth0"), attachment(older, "eth0")}
	if got := n.gcs(log); len(got) != 1 || !reflect.DeepEqual(got[0].Valid, want) {
		t.Errorf("the default network's GC was given %v, want %v", got, want)
	}
	n.succeed("DEL", p)
}

// TestGCKnowsEveryInterfaceOfAPodOfMultus proves that all interfaces count if the
// runtime lists several for a sandbox, because the file of Multus does not say
// which of them it was called for.
func TestGCKnowsEveryInterfaceOfAPodOfMultus(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	text := strings.Replace(n.scripted(`,"name":"cluster-net"`), "1.0.0", "1.1.0", 1)
	n.setDefault("1.1.0", text)
	p := n.addPod("pod", "")
	n.file("state/"+p.ID, fmt.Sprintf(`[{"Conf":%s,"Bytes":%q}]`, text, base64.StdEncoding.EncodeToString([]byte(text))))
	valid := []map[string]string{attachment(p, "lo"), attachment(p, "eth0")}
	n.withConf(map[string]any{"cni.dev/valid-attachments": valid})
	n.succeed("GC", &pod{})
	if got, want := n.gcs(n.path("calls")), []collected{{"cluster-net", valid}}; !reflect.DeepEqual(got, want) {
		t.Errorf("the delegate's GC was given %v, want %v", got, want)
	}
}

// TestGCReachesADefaultNetworkThatIsADefinition proves that GC reaches it under the
// name of its attachments, even if no sandbox is attached to it.
func TestGCReachesADefaultNetworkThatIsADefinition(t *testing.T) {
	for name, key := range map[string]string{"definition-net": `,"name":"definition-net"`, "kube-def": ""} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]any{"clusterNetwork": "kube-def", "multusNamespace": "default"})
			n.serve()
			n.define("kube-def", "", strings.Replace(n.scripted(key), "1.0.0", "1.1.0", 1))
			p, older := n.addPod("pod", ""), n.addPod("older", "")
			n.collect(older)
			n.succeed("ADD", p)
			n.collect(p)
			want := []collected{{name, []map[string]string{attachment(older, "eth0")}}, {name, []map[string]string{attachment(p, "eth0")}}}
			if got := n.gcs(n.path("calls")); !reflect.DeepEqual(got, want) {
				t.Errorf("the default network's GC was given %v, want %v", got, want)
			}
			n.succeed("DEL", p)
		})
	}
}

// TestGCGoesPastDelegatesThatFail proves that, whatever the default network and the
// first plugin of a chain do, the others collect, stale sandboxes are released, and
// every failure is reported.
func TestGCGoesPastDelegatesThatFail(t *testing.T) {
	const refuses = `,"script":{"GC":{"error":{"code":77,"msg":"switch is busy"}}}`
	for name, tc := range map[string]struct {
		version, plugin string // the default network at the time of GC
		code            uint
		parts           []string
	}{
		"refuses":             {"1.1.0", `{"type":"scripted"` + refuses + `}`, 77, []string{"network cluster-net"}},
		"unsupported version": {"9.9.9", `{"type":"scripted"}`, 1, []string{"network cluster-net", "9.9.9"}},
		"no such program":     {"1.1.0", `{"type":"nonesuch"}`, 115, []string{"network cluster-net", "nonesuch"}},
		"dies":                {"1.1.0", `{"type":"scripted","script":{"GC":{"signal":9}}}`, 77, []string{"network cluster-net"}},
		"hangs":               {"1.1.0", `{"type":"scripted","script":{"GC":{"hang":true}}}`, 115, []string{"network cluster-net"}},
		"broken file":         {"1.1.0", `{`, 77, nil}, // GC does not reach it
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]any{"lockTimeout": "1m"}) // all GCs together get half of it
			n.serve()
			n.warm()
			chain := func(first string) string {
				return `{"cniVersion":"1.1.0","name":"logged-net","plugins":[` + first + `,{"type":"scripted","log":"` + n.path("calls") + `","script":{
					"ADD":{"stdout":"{\"cniVersion\":\"1.1.0\"}"},"DEL":{"stdout":"\n"}}}]}`
			}
			n.define("chain", "", chain(`{"type":"scripted"`+refuses+`}`))
			n.define("gone", "", strings.Replace(chain(`{"type":"quits"}`), "logged-net", "gone-net", 1))
			n.must(os.Symlink(filepath.Join(n.bin, "scripted"), filepath.Join(n.bin, "quits")))
			keep, stale := n.addPod("keep", "chain,gone"), n.addPod("stale", "chain")
			n.succeed("ADD", keep)
			n.succeed("ADD", stale)
			n.must(errors.Join(os.Remove(n.path("calls")), os.Remove(filepath.Join(n.bin, "quits"))))
			n.setDefault(tc.version, tc.plugin)
			gc := *n
			gc.withConf(map[string]any{"cni.dev/valid-attachments": []map[string]string{attachment(keep, "eth0")}})
			gc.refuse("GC", &pod{}, tc.code, append(tc.parts, "network default/chain", "switch is busy", "network default/gone", "quits")...)
			want := []collected{{"logged-net", []map[string]string{attachment(keep, "net1")}}, {"gone-net", []map[string]string{attachment(keep, "net2")}}}
			if got := n.gcs(n.path("calls")); !reflect.DeepEqual(got, want) {
				t.Errorf("delegates' GC was given %v, want %v", got, want)
			}
			n.refuse("CHECK", stale, 3, "not attached")
			n.must(os.Symlink(filepath.Join(n.bin, "scripted"), filepath.Join(n.bin, "quits")))
			n.succeed("DEL", keep)
		})
	}
}

func TestGCCanBeDisabled(t *testing.T) {
	n := newNode(t, map[string]any{"disableGC": true})
	n.serve()
	n.warm()
	p := n.addPod("pod", "plain")
	n.succeed("ADD", p)
	n.collect()
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}
