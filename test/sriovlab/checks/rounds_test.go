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

// rounds is how often a VF goes into a pod and comes back in TestManyRounds, if
// there is time for it.
const rounds = 500

// budget is how long checks that repeat may do so: the lab's flag -repeat.
func budget(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv(BudgetVariable))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestManyRounds attaches VFs and gives them back many times, all VFs of the
// machine at once, half of them with an address and half with properties on the
// PF. What the first time has left is there, and nothing more, after the last.
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
			t.Logf("the agent's files at first %q, at last %q", open, n.agentFiles())
		}
	}()
	// A second connection is no leak, which would be of a file for each of two pods at
	// least; it stands for a minute and a half.
	n.eventually("the agent to have no more files open than at first", func() bool { return len(n.agentFiles()) <= len(open)+1 })
	n.inOrder()
}

// attachAll makes a pod on all VFs of each PF and takes both away again.
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

// agentFiles are the files that the agent has open: where two pods were served at
// once, it may keep a second connection to the API server for a while.
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
