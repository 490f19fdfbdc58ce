package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/test/harness"
)

// collected is what a delegate was given by one GC.
type collected struct {
	Name  string              `json:"name"`
	Valid []map[string]string `json:"cni.dev/valid-attachments"`
}

// gcs returns the GC calls of a scripted delegate's log, and removes the log.
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
	list := []map[string]string{}
	for _, p := range valid {
		list = append(list, attachment(p, "eth0"))
	}
	gc := *n // another call may be under way
	gc.withConf(map[string]any{"cni.dev/valid-attachments": list})
	gc.succeed("GC", &pod{})
}

func attachment(p *pod, ifName string) map[string]string {
	return map[string]string{"containerID": p.ID, "ifname": ifName}
}

// gcNode is a node with a definition whose delegate logs, and its log.
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
	n.collect() // the runtime does not name it any more
	n.file("gate", "")
	if res := <-deleted; res.Status != 0 {
		t.Errorf("DEL: %s", res.Stdout)
	}
	if calls := n.calls("DEL"); len(calls) != 1 {
		t.Errorf("the delegate's DEL was called %d times", len(calls))
	}
}

// TestGCLeavesAPodOfMultusAloneThatIsBeingDeleted: of such a pod there is no
// journal, but the lock.
func TestGCLeavesAPodOfMultusAloneThatIsBeingDeleted(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	gate, p := n.path("gate"), n.addPod("pod", "")
	conf, err := libcni.NetworkPluginConfFromBytes([]byte(n.scripted(`,"name":"logged-net","script":{"DEL":{"gate":"` + gate + `"}}`)))
	n.must(err)
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.path("state"), nil)
	_, err = cni.AddNetwork(context.Background(), conf, &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: "eth0"})
	n.must(err)
	deleted := make(chan *harness.Result)
	go func() { deleted <- n.call("DEL", p) }()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	n.must(os.Remove(gate + ".reached"))
	n.collect()
	if exists(gate + ".reached") {
		t.Error("GC called the delegate's DEL beside the runtime's")
	}
	n.file("gate", "")
	if res := <-deleted; res.Status != 0 {
		t.Errorf("DEL: %s", res.Stdout)
	}
	if calls := n.calls("DEL"); len(calls) != 1 {
		t.Errorf("the delegate's DEL was called %d times", len(calls))
	}
}

// TestNoSandboxBeginsWhileDelegatesCollect: it would be missing from the list
// that they were given.
func TestNoSandboxBeginsWhileDelegatesCollect(t *testing.T) {
	n := newNode(t, map[string]any{"lockTimeout": "4m"}) // GC has half of it
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
	for range 50 { // an ADD that does not wait is seen, sooner or later; one that waits never fails here
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
