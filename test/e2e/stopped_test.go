package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/manifold-cni/manifold/test/harness"
)

// stop suspends a process until the returned function is called.
func (n *node) stop(cmd *exec.Cmd) (goOn func()) {
	n.t.Helper()
	n.must(cmd.Process.Signal(syscall.SIGSTOP))
	n.t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGCONT) }) // otherwise it would not exit
	return func() { n.must(cmd.Process.Signal(syscall.SIGCONT)) }
}

// reads waits until the agent's log has a line about a sandbox that contains what.
func (n *node) reads(p *pod, what string) {
	n.t.Helper()
	n.eventually("the agent to log a line about "+p.ID, func() bool {
		log, err := os.ReadFile(n.path("agent.log"))
		n.must(err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, what) && strings.Contains(line, p.ID) {
				return true
			}
		}
		return false
	})
}

// TestAgentThatStandsStill proves that a suspended agent delays a pod only for the
// time it takes to notice, and does no harm when it resumes.
func TestAgentThatStandsStill(t *testing.T) {
	n, api := newAPINode(t)
	status := &statusNode{n, api}
	cmd := n.serve()
	warm := n.apiPod(api, "warm", "")
	n.succeed("ADD", warm)
	n.succeed("DEL", warm)
	n.must(warm.ns.Delete())
	n.must(os.RemoveAll(n.path("ipam")))
	n.eventually("the snapshot", func() bool { return exists(n.path("state/snapshot")) })
	before := n.state()

	goOn := n.stop(cmd)
	p := n.apiPod(api, "asked", "")
	n.succeed("ADD", p) // planned by its own program
	if got := status.published("asked"); len(got) != 1 || got[0].Interface != "eth0" {
		t.Errorf("published %+v", got)
	}
	goOn()
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
	for _, e := range api.Events() {
		if e.Type != "Normal" {
			t.Errorf("event %s: %s", e.Reason, e.Message) // about the call that was given up
		}
	}
}

// TestAgentThatStandsStillInMidADD proves that a report about a sandbox that is
// gone when the agent reads it does not become the status of the pod's next
// sandbox.
func TestAgentThatStandsStillInMidADD(t *testing.T) {
	n, api := newAPINode(t)
	status := &statusNode{n, api}
	keys := n.agentKeys()
	keys["cniDir"] = n.path("state")
	n.agentConfig(keys)
	cmd := n.serve()
	gate := n.path("gate")
	definition(api, "slow", "", n.scripted(`,"name":"slow","script":{"ADD":{"gate":"`+gate+`"}}`))
	first := n.apiPod(api, "app", "slow")
	added := make(chan *harness.Result, 1)
	go func() {
		res, _ := n.rt.Call("ADD", first.Sandbox) // a failure has no result
		added <- res
	}()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	goOn := n.stop(cmd)
	n.file("gate", "")
	if res := <-added; res == nil || res.Status != 0 {
		t.Fatalf("ADD: %+v", res)
	}
	n.succeed("DEL", first)
	second := n.sandbox("app", first.UID)
	n.succeed("ADD", second)
	want := status.published("app")
	goOn()
	n.reads(first, `"msg":"report"`)
	n.must(cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil { // it finishes what it has read
		t.Errorf("the agent: %v", err)
	}
	if got := status.published("app"); len(got) != 2 || len(want) != 2 || got[0].IPs[0] != want[0].IPs[0] {
		t.Errorf("published %+v, want what the second sandbox has: %+v", got, want)
	}
	n.serve()
	n.succeed("DEL", second)
}
