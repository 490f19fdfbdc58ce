package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/test/harness"
)

// restartAtOnce is how many pods a node that comes back attaches at once.
const restartAtOnce = 50

// restart measures how long a node takes to attach all its pods, twice, in turn.
func (n *node) restart(r *report) error {
	const rounds = 2
	d := n.sets[0]
	contenders := n.contenders(d)[:2] // the floor and the default
	wall := make([]float64, len(contenders))
	for range rounds {
		for c, who := range contenders {
			began := time.Now()
			if err := n.all(who.add); err != nil {
				return err
			}
			wall[c] += millis(time.Since(began)) / rounds
			if err := n.all(who.del); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(r.out)
	for c, who := range contenders {
		r.figure(fmt.Sprintf("%d pods after a node's restart, %d at once: %s", n.options.restart, restartAtOnce, who.name), wall[c], "ms")
	}
	r.figure("the same, ratio to the floor", wall[1]/wall[0], "")
	return nil
}

// all runs a verb for all pods of the node, so many at once.
func (n *node) all(verb func(pod, sandbox int) error) error {
	errs := make([]error, restartAtOnce)
	pods := make(chan int)
	var wg sync.WaitGroup
	for worker := range restartAtOnce {
		wg.Go(func() {
			for pod := range pods {
				errs[worker] = errors.Join(errs[worker], verb(pod, worker))
			}
		})
	}
	for pod := range n.options.restart {
		pods <- pod
	}
	close(pods)
	wg.Wait()
	return errors.Join(errs...)
}

// fallback measures ADD without an agent, which it ends.
func (n *node) fallback(r *report) error {
	pods := min(20, n.pods)
	if err := n.stopAgent(); err != nil {
		return err
	}
	d := n.sets[0]
	contenders := n.contenders(d)[:2]
	adds := []*series{{Delegates: d.name, AtOnce: 1, Verb: "ADD", Contender: "floor"}, {Delegates: d.name, AtOnce: 1, Verb: "ADD", Contender: "one-shot"}}
	for pod := range pods {
		for c, who := range contenders {
			if err := adds[c].measure(who, who.add, pod, 1); err != nil {
				return err
			}
			if err := who.del(pod, 0); err != nil {
				return err
			}
		}
	}
	fmt.Fprint(r.out, "\nWithout an agent:")
	r.compared(adds)
	return nil
}

// starts measures a process's start to end, doing nothing (VERSION), beside the
// no-op delegate's.
func (n *node) starts(r *report) error {
	all := []*series{}
	for _, name := range []string{"noop", "manifold"} {
		rt := harness.Runtime{Plugin: n.path("bin/" + name), Path: n.path("bin")}
		s := &series{Delegates: "no", AtOnce: 1, Verb: "VERSION", Contender: name}
		who := contender{cpu: n.manifoldCPU}
		for range n.pods {
			if err := s.measure(who, func(int, int) error { _, err := rt.Call("VERSION", harness.Sandbox{}); return err }, 0, 1); err != nil {
				return err
			}
		}
		all = append(all, s)
	}
	r.compared(all)
	return nil
}

// readiness measures STATUS, which runtimes ask every few seconds: the floor asks
// the default network's delegate, Manifold its agent and then that delegate.
func (n *node) readiness(r *report) error {
	d := delegates{name: "status"}
	config := []byte(`{"cniVersion":"1.1.0","name":"status-0","plugins":[{"type":"noop"}]}`) // older ones know no STATUS
	list, err := libcni.NetworkConfFromBytes(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.path("net.d/status.conflist"), config, 0o600); err != nil {
		return err
	}
	contenders := n.contenders(d)[:2]
	asks := []func(int, int) error{
		func(int, int) error { return n.floorCNI().GetStatusNetworkList(context.Background(), list) },
		func(int, int) error { return n.ask("STATUS", d, statusSync, harness.Sandbox{}) },
	}
	all := []*series{{Contender: "floor"}, {Contender: "manifold"}}
	for _, s := range all {
		s.Delegates, s.AtOnce, s.Verb = "no-op", 1, "STATUS"
	}
	for range n.pods {
		for c, who := range contenders {
			if err := all[c].measure(who, asks[c], 0, 1); err != nil {
				return err
			}
		}
	}
	r.compared(all)
	return nil
}

// footprint measures sizes, resident memory, and the agent's CPU when nothing
// happens.
func (n *node) footprint(r *report) error {
	fmt.Fprintln(r.out)
	fi, err := os.Stat(n.path("bin/manifold"))
	if err != nil {
		return err
	}
	r.figure("plugin, stripped", float64(fi.Size())/1e6, "MB")
	d, last := n.sets[0], len(n.podsOf[n.sets[0].name])-1
	cmd := n.runtime(d, statusSync).Command("ADD", n.sandbox(d, last, 0))
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	most, err := peak(cmd.Process.Pid, n.path("bin/manifold"), ended)
	if err := errors.Join(err, n.call("DEL", d, statusSync, last, 0)); err != nil {
		return err
	}
	r.figure("plugin, resident at most", float64(most)/1024, "MiB")
	r.figure("agent, resident", float64(harness.ProcessMemory(n.agent.Process.Pid, "VmRSS:"))/1024, "MiB")
	before, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	time.Sleep(n.idle)
	after, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	r.figure("agent, CPU of an idle node", 100*float64(after-before)/float64(n.idle), "% of a core")
	return nil
}

// requests prints what the agent has asked of the API server in this run.
func (n *node) requests(r *report) error {
	asked, err := n.cluster.asked()
	if err != nil || asked == nil {
		return err
	}
	attached := 0
	for _, s := range r.Series {
		if s.Verb == "ADD" && s.Contender != "floor" {
			attached += len(s.Millis)
		}
	}
	attached += 2*n.options.restart + 1
	fmt.Fprintln(r.out)
	for what, count := range asked {
		r.figure("requests to the API server per pod: "+what, float64(count)/float64(attached), "")
	}
	return nil
}

// traced writes the system calls of one ADD and one DEL, by strace.
func (n *node) traced(dir string) error {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return fmt.Errorf("%w: install strace", err)
	}
	d := n.sets[0]
	for _, verb := range []string{"ADD", "DEL"} {
		file := filepath.Join(dir, verb+".strace")
		cmd := n.runtime(d, statusSync).Command(verb, n.sandbox(d, 0, 0))
		cmd.Path, cmd.Args = strace, []string{"strace", "-f", "-r", "-y", "-o", file, cmd.Path}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		fmt.Println(file)
	}
	return nil
}

// peak follows a process until it ends and returns the largest resident memory
// of its own program, in KiB. The kernel's accounting of an ended process would
// count its parent's memory from before the exec.
func peak(pid int, program string, ended <-chan error) (int64, error) {
	var most int64
	for {
		select {
		case err := <-ended:
			return most, err
		default:
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == filepath.Base(program) {
			most = max(most, harness.ProcessMemory(pid, "VmHWM:"))
		}
	}
}
