//go:build sriovlab

package checks

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// rounds is how often VFs go into pods and come back in TestManyRounds, if there is
// time.
const rounds = 500

// budget returns how long checks that repeat may go on: the lab's flag -repeat.
func budget(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv(BudgetVariable))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestManyRounds attaches all VFs of the machine at once and gives them back, many
// times, half of them with addresses and half with settings on the PF. It proves that
// the last round leaves no more than the first.
func TestManyRounds(t *testing.T) {
	end := time.Now().Add(budget(t))
	n := newNode(t)
	n.define("left", left, hostDevice(map[string]any{"ipam": n.ipam("10.62.0.0/24")}))
	n.define("right", right, properties(map[string]any{"vlan": 100, "trust": "on"})...)
	perTime := len(pfs[0].vfs) + len(pfs[1].vfs)
	n.attachAll(0)
	state, vfs, open := n.state(), hardware(t), n.agentFiles()
	done := perTime
	for i := 1; done < rounds && (i == 1 || time.Now().Before(end)); i++ {
		n.attachAll(i)
		if t.Failed() {
			return
		}
		done += perTime
	}
	t.Logf("%d rounds", done)
	vfs.same(t)
	n.unchanged(state)
	defer func() {
		if t.Failed() {
			t.Logf("the agent's open files were %q and are %q", open, n.agentFiles())
		}
	}()
	// The agent may keep a second connection for a minute and a half. That is no leak:
	// a leak would be at least a file for each two pods.
	n.eventually("the agent to have no more open files than at first", func() bool { return len(n.agentFiles()) <= len(open)+1 })
	n.inOrder()
}

// attachAll attaches all VFs, those of each PF to one pod, and detaches them again.
func (n *node) attachAll(i int) {
	n.t.Helper()
	var pods []*pod
	for j, network := range []string{"left", "right"} {
		networks := strings.TrimSuffix(strings.Repeat(network+",", len(pfs[j].vfs)), ",")
		resources := slices.Repeat([]string{pfs[j].resource}, len(pfs[j].vfs))
		pods = append(pods, n.admit(fmt.Sprintf("%s-%d", network, i), networks, nil, container("c", resources...)))
	}
	for _, verb := range []string{"ADD", "DEL"} {
		for k, res := range n.together(verb, pods...) {
			if res.Status != 0 {
				n.t.Errorf("%s %s: %s", verb, pods[k].Name, res.Stdout)
			}
		}
	}
	for _, p := range pods {
		n.release(p)
		n.api.DeletePod("default", p.Name)
	}
}

// agentFiles returns the files that the agent has open. After serving two pods at once
// it may keep a second connection to the API server for a while.
func (n *node) agentFiles() []string {
	n.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", n.agent.Process.Pid)
	entries, err := os.ReadDir(dir)
	n.must(err)
	files := make([]string, 0, len(entries))
	for _, e := range entries {
		if file, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			files = append(files, file)
		}
	}
	return files
}
