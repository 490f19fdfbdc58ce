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
	// agent: it has the agent, which works on when a call has returned.
	agent bool
}

// usage is processor time: of all that a contender runs on the node, of the agent as
// a part of it, and of the API server with its etcd.
type usage struct{ node, agent, api time.Duration }

// since returns what was used after before.
func (u usage) since(before usage) usage {
	return usage{u.node - before.node, u.agent - before.agent, u.api - before.api}
}

// contenders returns those for a set of delegates, the floor first, then Manifold as
// it is by default.
func (n *node) contenders(d delegates) []contender {
	out := []contender{n.floor(d), n.manifold(d, statusSync), n.manifold(d, statusAsync)}
	if n.beside != "" {
		other := n.runtime(d, statusSync)
		other.Plugin = n.beside
		out = append(out, n.plugin(besideName, other))
	}
	return out
}

// floor is libcni alone, in this process.
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

// manifold is the plugin with the agent, network-status published as status says.
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

// Values of the plugin's key status, which are also the names of Manifold's
// contenders.
const (
	statusSync  = "sync"  // published before ADD returns
	statusAsync = "async" // published after
)

// floorName is the floor's as a contender, and besideName that of another plugin
// with the same agent, published as with sync.
const (
	floorName  = "floor"
	besideName = "beside"
)

// used is the plugin's with its delegates, the agent's, and the API server's.
func (n *node) used() (usage, error) {
	children, err := rusage(unix.RUSAGE_CHILDREN)
	agent, err2 := n.agentCPU()
	api, err3 := n.cluster.cpu()
	return usage{children + agent, agent, api}, errors.Join(err, err2, err3)
}

// agentCPU is the agent's, where it runs.
func (n *node) agentCPU() (time.Duration, error) {
	if n.agent == nil {
		return 0, nil
	}
	return harness.ProcessCPU(n.agent.Process.Pid)
}

// rusage returns the CPU time of this process, or of the children that ended.
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

// floorCNI is libcni as the floor uses it.
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

// runtime is the container runtime that calls the plugin.
func (n *node) runtime(d delegates, status string) *harness.Runtime {
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"manifold","type":"manifold","clusterNetwork":"%s-0","confDir":%q,"cniDir":%q,
		"agentSocket":%q,"agentProgram":%q,"agentConfig":%q,"status":%q}`, d.name, n.path("net.d"), n.path("state"),
		n.path("agent.sock"), n.path("bin/manifold-agent"), n.path("agent.json"), status)
	return &harness.Runtime{Plugin: n.path("bin/manifold"), Path: os.Getenv("CNI_PATH"), Conf: []byte(conf)}
}

// run runs the plugin. One that says anything on stderr has not done all that is
// measured, although it succeeds.
func run(rt *harness.Runtime, verb string, s harness.Sandbox) error {
	res, err := rt.Call(verb, s)
	if err == nil && (res.Status != 0 || len(res.Stderr) > 0) {
		err = fmt.Errorf("%s %s", res.Stdout, res.Stderr)
	}
	return err
}

// progress says what is being measured, as [harness.Progress] does.
func progress(text string) { harness.Progress("%s", text) }
