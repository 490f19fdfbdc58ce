package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// contender attaches and releases pods. A call names the pod, and the sandbox
// out of those that are in use at once.
type contender struct {
	name     string
	add, del func(pod, sandbox int) error
	used     func() (usage, error) // so far
}

// usage is processor time: of all that a contender runs on the node, of the agent as
// a part of it, and of the API server with its etcd.
type usage struct{ node, agent, api time.Duration }

// since returns what was used after before.
func (u usage) since(before usage) usage {
	return usage{u.node - before.node, u.agent - before.agent, u.api - before.api}
}

// contenders returns those for a set of delegates, the floor first.
func (n *node) contenders(d delegates) []contender {
	cni := n.floorCNI()
	floor := contender{
		name: floorName,
		add:  func(pod, sandbox int) error { return n.floorAdd(cni, d, pod, sandbox) },
		del:  func(pod, sandbox int) error { return n.floorDel(cni, d, pod, sandbox) },
		used: func() (usage, error) {
			own, err := rusage(unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN)
			return usage{node: own}, err
		},
	}
	out := []contender{floor}
	for _, status := range []string{statusSync, statusAsync} {
		out = append(out, contender{
			name: status,
			add:  func(pod, sandbox int) error { return n.call("ADD", d, status, pod, sandbox) },
			del:  func(pod, sandbox int) error { return n.call("DEL", d, status, pod, sandbox) },
			used: n.used,
		})
	}
	if n.beside == "" {
		return out
	}
	other := func(verb string) func(pod, sandbox int) error {
		return func(pod, sandbox int) error {
			rt := n.runtime(d, statusSync)
			rt.Plugin = n.beside
			return n.run(rt, verb, n.sandbox(d, pod, sandbox))
		}
	}
	return append(out, contender{name: besideName, add: other("ADD"), del: other("DEL"), used: n.used})
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

func (n *node) floorRuntime(pod, sandbox, network int) *libcni.RuntimeConf {
	ifName := "eth0"
	if network > 0 {
		ifName = fmt.Sprintf("net%d", network)
	}
	return &libcni.RuntimeConf{ContainerID: fmt.Sprintf("floor%d", pod), NetNS: n.netns[sandbox].Path, IfName: ifName}
}

// floorAdd is the floor's ADD: libcni alone, in this process.
func (n *node) floorAdd(cni *libcni.CNIConfig, d delegates, pod, sandbox int) error {
	for k, list := range d.lists {
		if _, err := cni.AddNetworkList(context.Background(), list, n.floorRuntime(pod, sandbox, k)); err != nil {
			return err
		}
	}
	return nil
}

// floorDel is the floor's DEL.
func (n *node) floorDel(cni *libcni.CNIConfig, d delegates, pod, sandbox int) error {
	for k := len(d.lists) - 1; k >= 0; k-- {
		if err := cni.DelNetworkList(context.Background(), d.lists[k], n.floorRuntime(pod, sandbox, k)); err != nil {
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

// sandbox is the sandbox of a pod.
func (n *node) sandbox(d delegates, pod, sandbox int) harness.Sandbox {
	p := n.podsOf[d.name][pod]
	return harness.Sandbox{
		ID: fmt.Sprintf("%s-%d", d.name, pod), NetNS: n.netns[sandbox].Path, Namespace: p.Namespace, Name: p.Name, UID: string(p.UID),
	}
}

// call runs the plugin as a runtime does.
func (n *node) call(verb string, d delegates, status string, pod, sandbox int) error {
	return n.run(n.runtime(d, status), verb, n.sandbox(d, pod, sandbox))
}

// run runs the plugin, and counts pods that were attached. One that says anything
// on stderr has not done all that is measured, although it succeeds.
func (n *node) run(rt *harness.Runtime, verb string, s harness.Sandbox) error {
	res, err := rt.Call(verb, s)
	if err == nil && (res.Status != 0 || len(res.Stderr) > 0) {
		err = fmt.Errorf("%s %s", res.Stdout, res.Stderr)
	}
	if err == nil && verb == "ADD" {
		n.attached.Add(1)
	}
	return err
}

// statusWait is how long a status may take to be published after ADD.
const statusWait = time.Minute

// reported returns an error where a pod that was attached has no network-status:
// then something else was measured.
func (n *node) reported(p *corev1.Pod) error {
	for end := time.Now().Add(statusWait); ; time.Sleep(10 * time.Millisecond) {
		now, err := n.cluster.get(p.Namespace, p.Name)
		if err != nil || now.Annotations[netattach.StatusAnnotation] != "" {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("pod %s/%s has no network-status", p.Namespace, p.Name)
		}
	}
}

// level measures all contenders with a number of pods at once, in turn.
func (n *node) level(r *report, d delegates, atOnce int) error {
	contenders := n.contenders(d)
	adds, dels := make([]*series, len(contenders)), make([]*series, len(contenders))
	for c := range contenders {
		adds[c] = &series{Delegates: d.name, AtOnce: atOnce, Verb: "ADD", Contender: contenders[c].name}
		dels[c] = &series{Delegates: d.name, AtOnce: atOnce, Verb: "DEL", Contender: contenders[c].name}
	}
	before, err := n.steps()
	if err != nil {
		return err
	}
	for first := 0; first < n.pods; first += atOnce {
		count := min(atOnce, n.pods-first)
		for c, who := range contenders {
			if err := adds[c].measure(who, who.add, first, count); err != nil {
				return err
			}
			if err := dels[c].measure(who, who.del, first, count); err != nil {
				return err
			}
		}
		progress(fmt.Sprintf("%s delegates, %d at once: %d of %d pods", d.name, atOnce, first+count, n.pods))
	}
	progress("")
	for _, p := range n.podsOf[d.name][:n.pods] {
		if err := n.reported(p); err != nil {
			return err
		}
	}
	r.compared(adds)
	r.compared(dels)
	after, err := n.steps()
	if err == nil {
		r.profile(before, after)
	}
	return err
}

// measure runs a verb for pods first to first+count-1 at once, and adds each
// one's time.
func (s *series) measure(who contender, verb func(pod, sandbox int) error, first, count int) error {
	before, err := who.used()
	if err != nil {
		return err
	}
	times, errs := make([]float64, count), make([]error, count)
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			began := time.Now()
			errs[i] = verb(first+i, i)
			times[i] = millis(time.Since(began))
		})
	}
	wg.Wait()
	after, err := who.used()
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("%s %s: %w", s.Contender, s.Verb, err)
	}
	s.add(times, after.since(before))
	return nil
}

// progress shows on a terminal what is being measured; an empty text ends it.
func progress(text string) {
	if fi, err := os.Stderr.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\033[K%s", text)
	}
}
