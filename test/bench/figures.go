package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

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
	for round := range rounds {
		for c, who := range contenders {
			progress(fmt.Sprintf("restart of the node, %s: %d of %d", who.name, round+1, rounds))
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
	progress("")
	fmt.Fprintln(r.out)
	for c, who := range contenders {
		r.figure(fmt.Sprintf("%d pods after a node's restart, %d at once: %s", n.options.restart, restartAtOnce, who.name), wall[c], "ms")
	}
	r.figure(restartRatio, wall[1]/wall[0], "")
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
	adds := []*series{{Delegates: d.name, AtOnce: 1, Verb: "ADD", Contender: floorName}, {Delegates: d.name, AtOnce: 1, Verb: "ADD", Contender: oneShot}}
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
		who := contender{used: n.used}
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
		func(int, int) error { return n.run(n.runtime(d, statusSync), "STATUS", harness.Sandbox{}) },
	}
	all := []*series{{Contender: floorName}, {Contender: "manifold"}}
	for _, s := range all {
		s.Delegates, s.AtOnce, s.Verb = noopName, 1, "STATUS"
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

// footprint measures the plugin's size, memory and start, and the agent's CPU when
// nothing happens.
func (n *node) footprint(r *report) error {
	fmt.Fprintln(r.out)
	fi, err := os.Stat(n.path("bin/manifold"))
	if err != nil {
		return err
	}
	r.figure(pluginSize, float64(fi.Size())/1e6, "MB")
	if err := errors.Join(n.most(r), n.firstDelegate(r)); err != nil {
		return err
	}
	before, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("nothing happens for %v", n.idle))
	time.Sleep(n.idle)
	progress("")
	after, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	r.figure(agentIdle, 100*float64(after-before)/float64(n.idle), "% of a core")
	return nil
}

// most measures the plugin's resident memory in one ADD.
func (n *node) most(r *report) error {
	d, last := n.sets[0], len(n.podsOf[n.sets[0].name])-1
	cmd := n.runtime(d, statusSync).Command("ADD", n.sandbox(d, last, 0))
	if err := cmd.Start(); err != nil {
		return err
	}
	n.attached.Add(1)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	most, err := peak(cmd.Process.Pid, n.path("bin/manifold"), ended)
	r.figure(pluginResident, float64(most)/1024, "MiB")
	return errors.Join(err, n.call("DEL", d, statusSync, last, 0))
}

// firstDelegate measures the time from the plugin's start to that of its first
// delegate, which writes it down.
func (n *node) firstDelegate(r *report) error {
	d, stamp := n.sets[0], n.path("stamp")
	var took []float64
	for pod := range n.pods {
		rt := n.runtime(d, statusSync)
		rt.Env = []string{"NOOP_STAMP=" + stamp}
		var began unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &began); err != nil {
			return err
		}
		if err := n.run(rt, "ADD", n.sandbox(d, pod, 0)); err != nil {
			return err
		}
		text, err := os.ReadFile(stamp)
		if err != nil {
			return err
		}
		ns, err := strconv.ParseInt(string(text), 10, 64)
		if err := errors.Join(err, os.Remove(stamp), n.call("DEL", d, statusSync, pod, 0)); err != nil {
			return err
		}
		took = append(took, float64(ns-began.Nano())/1e6)
	}
	r.figure(toFirstDelegate, quantile(took, 50), "ms")
	return nil
}

// requests prints what the agent has asked of the API server in this run.
func (n *node) requests(r *report) error {
	asked, err := n.cluster.asked()
	if err != nil || asked == nil {
		return err
	}
	fmt.Fprintln(r.out)
	for _, what := range slices.Sorted(maps.Keys(asked)) {
		r.figure(requestsPerPod+what, float64(asked[what])/float64(n.attached.Load()), "")
	}
	return nil
}

// published measures what publishing a pod's network-status takes alone: the same
// PATCH, from a process that does nothing else. One after another they would take
// two thirds of that: between them here is the floor's ADD and DEL, as in a call of
// the plugin there is its other work, during which API server and processors cool.
func (n *node) published(r *report) error {
	floor := n.contenders(n.sets[0])[0]
	var took []float64
	var cpu time.Duration
	for i, pod := range n.podsOf[noopName][:n.pods] {
		if err := errors.Join(floor.add(i, 0), floor.del(i, 0)); err != nil {
			return err
		}
		before, err := n.cluster.cpu()
		if err != nil {
			return err
		}
		began := time.Now()
		measured, err := n.cluster.publish(pod, fmt.Sprintf("[%d]", i))
		if err != nil || !measured {
			return err
		}
		took = append(took, millis(time.Since(began)))
		after, err := n.cluster.cpu()
		if err != nil {
			return err
		}
		cpu += after - before
	}
	fmt.Fprintln(r.out)
	r.figure("a PATCH of network-status alone, p50", quantile(took, 50), "ms")
	r.figure("the same, p99", quantile(took, 99), "ms")
	r.figure("the same, CPU of API server and etcd", millis(cpu)/float64(n.pods), "ms")
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
		cmd.Path, cmd.Args = strace, []string{"strace", "-f", "-r", "-y", "-s", "65536", "-o", file, cmd.Path}
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
