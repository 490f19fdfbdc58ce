package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/harness"
)

// contender attaches and releases pods.
type contender struct {
	name     string
	add, del func(harness.Sandbox) error
	used     func() (usage, error) // so far
	// agent is whether it has an agent, which may still work after a call has
	// returned.
	agent bool
}

// usage is processor time: of everything that a contender runs on the node, of the
// agent alone, and of the API server with its etcd.
type usage struct{ node, agent, api time.Duration }

// since returns what was used since before.
func (u usage) since(before usage) usage {
	return usage{u.node - before.node, u.agent - before.agent, u.api - before.api}
}

// plus returns what was used in two measurements together.
func (u usage) plus(more usage) usage {
	return usage{u.node + more.node, u.agent + more.agent, u.api + more.api}
}

// contenders returns the contenders for a set of delegates: the floor first, then
// Manifold in its default configuration.
func (n *node) contenders(d delegates) []contender {
	out := []contender{n.floor(d), n.manifold(d, statusSync), n.manifold(d, statusAsync)}
	if n.beside != "" {
		other := n.runtime(d, statusSync)
		other.Plugin = n.beside
		out = append(out, n.plugin(besideName, other))
	}
	return out
}

// floor returns the contender that is libcni alone, in this process.
func (n *node) floor(d delegates) contender {
	cni := n.floorCNI()
	return contender{
		name: floorName,
		add:  func(s harness.Sandbox) error { return floorAdd(cni, d, s) },
		del:  func(s harness.Sandbox) error { return floorDel(cni, d, s) },
		used: func() (usage, error) {
			own, err := rusage(unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN)
			return usage{node: own}, err
		},
	}
}

// manifold returns the plugin with the agent, with network-status published in the
// given mode.
func (n *node) manifold(d delegates, status string) contender {
	return n.plugin(status, n.runtime(d, status))
}

func (n *node) plugin(name string, rt *harness.Runtime) contender {
	return contender{
		name:  name,
		add:   func(s harness.Sandbox) error { return run(rt, "ADD", s) },
		del:   func(s harness.Sandbox) error { return run(rt, "DEL", s) },
		used:  n.used,
		agent: true,
	}
}

// Values of the plugin's key "status", which also name Manifold's contenders.
const (
	statusSync  = "sync"  // published before ADD returns
	statusAsync = "async" // published after ADD returns
)

// floorName names the floor as a contender, besideName another build of the plugin
// with the same agent, which publishes as with sync.
const (
	floorName  = "floor"
	besideName = "beside"
)

// used sums up the processor time of the plugin with its delegates, the agent, and
// the API server.
func (n *node) used() (usage, error) {
	children, err := rusage(unix.RUSAGE_CHILDREN)
	agent, err2 := n.agentCPU()
	api, err3 := n.cluster.cpu()
	return usage{children + agent, agent, api}, errors.Join(err, err2, err3)
}

// agentCPU returns the agent's processor time, 0 if it does not run.
func (n *node) agentCPU() (time.Duration, error) {
	if n.agent == nil {
		return 0, nil
	}
	return harness.ProcessCPU(n.agent.Process.Pid)
}

// rusage returns the CPU time of this process, or of its exited children.
func rusage(who ...int) (sum time.Duration, err error) {
	for _, w := range who {
		var u unix.Rusage
		if err := unix.Getrusage(w, &u); err != nil {
			return 0, err
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}

// floorCNI returns libcni as the floor uses it.
func (n *node) floorCNI() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(filepath.SplitList(os.Getenv("CNI_PATH")), n.path("floor"), nil)
}

func floorRuntime(s harness.Sandbox, network int) *libcni.RuntimeConf {
	ifName := "eth0"
	if network > 0 {
		ifName = fmt.Sprintf("net%d", network)
	}
	return &libcni.RuntimeConf{ContainerID: s.ID, NetNS: s.NetNS, IfName: ifName}
}

func floorAdd(cni *libcni.CNIConfig, d delegates, s harness.Sandbox) error {
	for k, list := range d.lists {
		if _, err := cni.AddNetworkList(context.Background(), list, floorRuntime(s, k)); err != nil {
			return err
		}
	}
	return nil
}

func floorDel(cni *libcni.CNIConfig, d delegates, s harness.Sandbox) error {
	for k := len(d.lists) - 1; k >= 0; k-- {
		if err := cni.DelNetworkList(context.Background(), d.lists[k], floorRuntime(s, k)); err != nil {
			return err
		}
	}
	return nil
}

// runtime returns the container runtime that calls the plugin.
func (n *node) runtime(d delegates, status string) *harness.Runtime {
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"manifold","type":"manifold","clusterNetwork":"%s-0","confDir":%q,"cniDir":%q,
		"agentSocket":%q,"agentProgram":%q,"agentConfig":%q,"status":%q}`, d.name, n.path("net.d"), n.path("state"),
		n.path("agent.sock"), n.path("bin/manifold-agent"), n.path("agent.json"), status)
	return &harness.Runtime{Plugin: n.path("bin/manifold"), Path: os.Getenv("CNI_PATH"), Conf: []byte(conf)}
}

// run runs the plugin. A call that succeeds but writes to stderr is an error: it
// has not done everything that is measured.
func run(rt *harness.Runtime, verb string, s harness.Sandbox) error {
	res, err := rt.Call(verb, s)
	if err == nil && (res.Status != 0 || len(res.Stderr) > 0) {
		err = fmt.Errorf("%s %s", res.Stdout, res.Stderr)
	}
	return err
}

// progress shows what is being measured, as [harness.Progress] does.
func progress(text string) { harness.Progress("%s", text) }
