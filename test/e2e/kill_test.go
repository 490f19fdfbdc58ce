package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// points runs a verb once and returns the names of its kill points, in order.
func (n *node) points(verb string, p *pod) []string {
	n.t.Helper()
	names, err := n.rt.KillPoints(verb, p.Sandbox, n.path("points"))
	n.must(err)
	return names
}

// afterKill lists what a runtime may do between a kill and its DEL.
var afterKill = []struct {
	name string
	do   func(n *node, p *pod)
}{
	{"DEL", func(*node, *pod) {}},
	{"DEL without the network namespace", func(n *node, p *pod) { n.must(p.ns.Delete()) }},
	{"DEL after the pod's next sandbox", func(n *node, p *pod) {
		next := n.sandbox(p.Name+"-again", p.UID)
		next.Name = p.Name
		n.must(p.ns.Delete())
		n.call("ADD", next) // it may be refused: the first sandbox still has the devices
		n.succeed("DEL", next)
		n.must(next.ns.Delete())
	}},
}

// killPod adds a pod with the default network, a bridge network and a device.
func (n *node) killPod(name string) *pod {
	n.t.Helper()
	n.define("plain", "", n.bridge("plain", "10.89.0.0/16"))
	n.define("nic-a", nicA, hostDeviceIPAM(n))
	id := n.device("nic0")
	p := n.addPod(name, "plain, nic-a", "c1")
	n.allocate(p, "c1", nicA, id)
	return p
}

// hostDeviceIPAM returns a device network with addresses.
func hostDeviceIPAM(n *node) string {
	return `{"cniVersion":"1.0.0","type":"host-device","capabilities":{"deviceID":true},
		"ipam":{"type":"host-local","dataDir":"` + n.path("ipam") + `","subnet":"10.90.0.0/16"}}`
}

// killRound kills a verb at one point, acts like the runtime after it, and compares
// the state.
func killRound(t *testing.T, verb string, k int, group bool, after func(*node, *pod)) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.killPod("victim")
	before := n.state()
	if verb == "DEL" {
		n.succeed("ADD", p)
	}
	n.must(n.rt.KillAt(verb, p.Sandbox, k, group))
	after(n, p)
	n.succeed("DEL", p)
	n.succeed("DEL", p)
	_ = p.ns.Delete() // already gone in some rounds
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}

// settles waits until nothing is left: the kernel destroys a network namespace,
// with the host's ends of its veth pairs, some time after its last user is gone.
func (n *node) settles(left func() string) {
	n.t.Helper()
	var diff string
	if !n.waits(func() bool { diff = left(); return diff == "" }) {
		n.t.Errorf("left behind:\n%s", diff)
	}
}

// waits waits a few seconds for the kernel to fulfill a condition.
func (n *node) waits(ok func() bool) bool {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// withoutGone drops what the kernel removes with the sandbox: the namespace itself,
// and a software device inside it, where hardware would return to the host.
func withoutGone(diff string) string {
	var out []string
	for _, line := range strings.Split(diff, "\n") {
		if line == "" || strings.HasPrefix(line, "- link nic0 ") || strings.HasPrefix(line, "- link p-nic0 ") || strings.HasPrefix(line, "- file /run/netns/") {
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestKilledAtEveryPointLeavesNothing(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.killPod("learn")
	points := map[string][]string{"ADD": n.points("ADD", p)}
	points["DEL"] = n.points("DEL", p)
	if len(points["ADD"]) < 15 || len(points["DEL"]) < 8 {
		t.Fatalf("too few kill points for a meaningful test: %v", points)
	}
	removeLink("nic0")
	for _, verb := range []string{"ADD", "DEL"} {
		for i, name := range points[verb] {
			for _, group := range []bool{false, true} {
				who := map[bool]string{false: "shim", true: "group"}[group]
				for _, a := range afterKill {
					t.Run(fmt.Sprintf("%s/%02d %s/%s/%s", verb, i+1, name, who, a.name), func(t *testing.T) {
						killRound(t, verb, i+1, group, a.do)
					})
				}
			}
		}
	}
}

// TestOrphanedDelegateIsWaitedFor kills only the shim while its delegate runs: DEL
// must not tear down in parallel with the delegate.
func TestOrphanedDelegateIsWaitedFor(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	gate := n.path("gate")
	n.define("slow", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.91.0.2/24"],"log":"`+n.path("calls")+`","script":{"ADD":{"gate":"`+gate+`"}}}`)
	p := n.addPod("orphan", "slow")
	before := n.state()
	n.killWhileGated(p, gate)
	del := n.rt.Command("DEL", p.Sandbox)
	n.must(del.Start())
	n.eventually("DEL to sleep", func() bool { return asleep(del.Process.Pid) })
	n.must(os.WriteFile(gate, nil, 0o600))
	n.must(del.Wait())
	n.unchanged(before)
	calls, err := os.ReadFile(n.path("calls"))
	n.must(err)
	if got := strings.Count(string(calls), `"verb":"DEL"`); got == 0 {
		t.Error("the delegate's DEL did not run after its orphaned ADD")
	}
}

// TestHangingOrphanIsEnded does the same with a delegate that never exits.
func TestHangingOrphanIsEnded(t *testing.T) {
	n := newNode(t, map[string]any{"lockTimeout": "300ms"})
	n.serve()
	n.warm()
	gate := n.path("gate")
	n.define("slow", "", `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"gate":"`+gate+`"}}}`)
	p := n.addPod("hang", "slow")
	before := n.state()
	n.killWhileGated(p, gate)
	n.succeed("DEL", p)
	n.unchanged(before)
}

// killWhileGated starts an ADD, waits until its delegate is at the gate, and kills
// only the shim.
func (n *node) killWhileGated(p *pod, gate string) {
	n.t.Helper()
	add := n.rt.Command("ADD", p.Sandbox)
	n.must(add.Start())
	n.eventually("the delegate at its gate", func() bool {
		_, err := os.Stat(gate + ".reached")
		return err == nil
	})
	n.must(add.Process.Kill())
	_ = add.Wait() // it was killed
}

// asleep reports whether the process runs the plugin and sleeps.
func asleep(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), "(manifold) S ")
}

func TestAgentKilledDuringAdd(t *testing.T) {
	for _, at := range []string{"1", "2"} {
		t.Run("point "+at, func(t *testing.T) {
			n := newNode(t, nil)
			n.warm()
			agent := n.serve("MANIFOLD_KILL_AT=" + at)
			p := n.killPod("pod")
			before := n.state()
			n.succeed("ADD", p)
			_ = agent.Wait() // it was killed in the middle of the call
			n.interfaceOf(p, "net2")
			n.succeed("DEL", p)
			n.unchanged(before)
		})
	}
}
