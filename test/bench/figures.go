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
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// restartAtOnce is the number of pods that a restarted node attaches at once.
const restartAtOnce = 50

// restartRounds is how often the node restarts for each contender, in turn.
const restartRounds = 5

// restart measures how long a restarted node takes to attach all its pods again,
// from the simultaneous start of agent and pods to the last attached pod, and the
// processor time of it.
func (n *node) restart(r *report) error {
	contenders := n.contenders(n.sets[0])[:2]
	walls, used := make([][]float64, len(contenders)), make([]usage, len(contenders))
	if err := n.watchBackground(); err != nil {
		return err
	}
	for round := range restartRounds {
		for i := range contenders {
			c := (round + i) % len(contenders)
			progress(fmt.Sprintf("restart of the node, %s: %d of %d", contenders[c].name, round+1, restartRounds))
			wall, u, err := n.restartOnce(contenders[c], round)
			if err != nil {
				return err
			}
			walls[c] = append(walls[c], wall)
			used[c] = used[c].plus(u)
		}
	}
	progress("")
	fmt.Fprintln(r.out)
	for c, who := range contenders {
		name := fmt.Sprintf("%d pods after a node's restart, %d at once: %s", n.options.restart, restartAtOnce, who.name)
		r.addEstimate(name, bootstrap(quantileOf(50), walls[c]), "ms")
		perPod := func(part string, cpu time.Duration) {
			r.addFigure(fmt.Sprintf("CPU per pod after a node's restart, %s: %s", who.name, part), millis(cpu)/float64(restartRounds*n.options.restart), "ms")
		}
		perPod("node", used[c].node)
		perPod("agent's part of it", used[c].agent)
		perPod("API server and etcd", used[c].api)
	}
	r.addEstimate(restartRatio, bootstrap(medianRatio, walls...), "")
	return nil
}

// restartOnce attaches all pods of the node, stops the agent, and starts it again
// together with the pods, each in a new sandbox while the files of the old sandbox
// are still there. It returns how long the pods took, in ms, and the processor time
// until no work is left.
func (n *node) restartOnce(who contender, round int) (wall float64, used usage, err error) {
	before, after := n.bootSandboxes(round, "before"), n.bootSandboxes(round, "after")
	if err := errors.Join(all(who.add, before), n.awaitRest()); err != nil {
		return 0, used, err
	}
	if who.agent {
		if err := n.stopAgent(); err != nil {
			return 0, used, err
		}
	}
	used, err = n.spent(who, func() error {
		began := time.Now()
		if who.agent {
			if err := n.launch(); err != nil {
				return err
			}
		}
		err := all(who.add, after)
		wall = millis(time.Since(began))
		return err
	})
	return wall, used, errors.Join(err, all(who.del, before), all(who.del, after))
}

// bootSandboxes returns a new sandbox for each pod of the node, as a boot creates
// them.
func (n *node) bootSandboxes(round int, name string) []harness.Sandbox {
	out := make([]harness.Sandbox, n.options.restart)
	for i := range out {
		out[i] = n.sandbox(n.podsOf[noopName][i], i)
		out[i].ID = fmt.Sprintf("%s-%d-%s", out[i].ID, round, name)
	}
	return out
}

// all runs a verb in all sandboxes, restartAtOnce at a time.
func all(verb func(harness.Sandbox) error, boxes []harness.Sandbox) error {
	errs := make([]error, restartAtOnce)
	next := make(chan harness.Sandbox)
	var wg sync.WaitGroup
	for worker := range restartAtOnce {
		wg.Go(func() {
			for box := range next {
				errs[worker] = errors.Join(errs[worker], verb(box))
			}
		})
	}
	for _, box := range boxes {
		next <- box
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// withoutAgent measures ADD without an agent, and stops the agent for that.
func (n *node) withoutAgent(r *report) error {
	if err := n.stopAgent(); err != nil {
		return err
	}
	contenders := n.contenders(n.sets[0])[:2]
	adds := []*series{{Contender: floorName}, {Contender: oneShot}}
	for _, s := range adds {
		s.Delegates, s.AtOnce, s.Verb = noopName, 1, "ADD"
	}
	for pod := range min(20, n.few()) {
		progress(fmt.Sprintf("ADD without an agent: pod %d", pod+1))
		for c, who := range contenders {
			box := n.sandbox(n.podsOf[noopName][pod], 0)
			if err := errors.Join(n.measure(adds[c], who, who.add, []harness.Sandbox{box}), who.del(box), n.awaitRest()); err != nil {
				return err
			}
		}
	}
	progress("")
	fmt.Fprint(r.out, "\nWithout an agent:")
	r.addComparison(adds)
	return nil
}

// processStarts measures a process from start to exit when it does nothing but
// answer VERSION: the no-op delegate in C, a Go program that does nothing at all, and
// the plugin. Their differences count, so they run in turn.
func (n *node) processStarts(r *report) error {
	programs := []string{"noop", "nothing", "manifold"}
	all := []*series{}
	for _, name := range programs {
		all = append(all, &series{Delegates: "no", AtOnce: 1, Verb: "VERSION", Contender: name})
	}
	who := contender{used: n.used}
	for round := range n.few() {
		progress(fmt.Sprintf("starts of programs: %d of %d", round+1, n.few()))
		for i := range programs {
			p := (round + i) % len(programs)
			rt := harness.Runtime{Plugin: n.path("bin/" + programs[p]), Path: n.path("bin")}
			version := func(s harness.Sandbox) error { return run(&rt, "VERSION", s) }
			if err := n.measure(all[p], who, version, make([]harness.Sandbox, 1)); err != nil {
				return err
			}
		}
	}
	progress("")
	r.addComparison(all)
	return nil
}

// statusCalls measures STATUS, which runtimes call every few seconds: the floor asks
// the default network's delegate, Manifold its agent and then that delegate.
func (n *node) statusCalls(r *report) error {
	d := delegates{name: "status"}
	config := []byte(`{"cniVersion":"1.1.0","name":"status-0","plugins":[{"type":"noop"}]}`) // older versions have no STATUS
	list, err := libcni.NetworkConfFromBytes(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.path("net.d/status.conflist"), config, 0o600); err != nil {
		return err
	}
	status := n.runtime(d, statusSync)
	contenders := n.contenders(d)[:2]
	asks := []func(harness.Sandbox) error{
		func(harness.Sandbox) error { return n.floorCNI().GetStatusNetworkList(context.Background(), list) },
		func(s harness.Sandbox) error { return run(status, "STATUS", s) },
	}
	all := []*series{{Contender: floorName}, {Contender: "manifold"}}
	for _, s := range all {
		s.Delegates, s.AtOnce, s.Verb = noopName, 1, "STATUS"
	}
	for i := range n.few() {
		progress(fmt.Sprintf("STATUS: %d of %d", i+1, n.few()))
		for c, who := range contenders {
			if err := n.measure(all[c], who, asks[c], make([]harness.Sandbox, 1)); err != nil {
				return err
			}
		}
	}
	progress("")
	r.addComparison(all)
	return nil
}

// footprint measures the plugin's size, memory and start, and the CPU of an idle
// agent.
func (n *node) footprint(r *report) error {
	fmt.Fprintln(r.out)
	fi, err := os.Stat(n.path("bin/manifold"))
	if err != nil {
		return err
	}
	r.addFigure(pluginSize, float64(fi.Size())/1e6, "MB")
	if err := errors.Join(n.pluginMemory(r), n.firstDelegate(r)); err != nil {
		return err
	}
	before, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("idle for %v", n.idle))
	time.Sleep(n.idle)
	progress("")
	after, err := harness.ProcessCPU(n.agent.Process.Pid)
	if err != nil {
		return err
	}
	r.addFigure(agentIdle, 100*float64(after-before)/float64(n.idle), "% of a core")
	return nil
}

// pluginMemory measures the plugin's peak resident memory in one ADD.
func (n *node) pluginMemory(r *report) error {
	d, pods := n.sets[0], n.podsOf[noopName]
	box := n.sandbox(pods[len(pods)-1], 0)
	cmd := n.runtime(d, statusSync).Command("ADD", box)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	most, err := peakMemory(cmd.Process.Pid, n.path("bin/manifold"), ended)
	r.addFigure(pluginResident, float64(most)/1024, "MiB")
	return errors.Join(err, n.manifold(d, statusSync).del(box))
}

// firstDelegate measures the time from the plugin's start to the start of its first
// delegate. Beside it, in turn, it measures two parts that no plugin in Go can avoid:
// a Go program and the delegate, each from its start to its main.
func (n *node) firstDelegate(r *report) error {
	stamp, manifold := n.path("stamp"), n.manifold(n.sets[0], statusSync)
	programs := []struct {
		figure, verb string
		rt           *harness.Runtime
	}{
		{toMainOfC, "VERSION", &harness.Runtime{Plugin: n.path("bin/noop")}},
		{toMainOfGo, "VERSION", &harness.Runtime{Plugin: n.path("bin/clock")}},
		{toFirstDelegate, "ADD", n.runtime(n.sets[0], statusSync)},
	}
	took := make([][]float64, len(programs))
	for round := range n.few() {
		progress(fmt.Sprintf("time to the first delegate: %d of %d", round+1, n.few()))
		box := n.sandbox(n.podsOf[noopName][round], 0)
		for i := range programs {
			p := (round + i) % len(programs)
			if err := n.awaitRest(); err != nil {
				return err
			}
			ms, err := untilStamp(programs[p].rt, programs[p].verb, box, stamp)
			if err != nil {
				return err
			}
			took[p] = append(took[p], ms)
		}
		if err := manifold.del(box); err != nil {
			return err
		}
	}
	progress("")
	for p := range programs {
		r.addEstimate(programs[p].figure, bootstrap(quantileOf(50), took[p]), "ms")
	}
	return nil
}

// untilStamp calls a program that writes a time, to stderr or, if it is the no-op
// delegate or runs it, to the file stamp. It returns the ms from the start to that time.
func untilStamp(rt *harness.Runtime, verb string, box harness.Sandbox, stamp string) (float64, error) {
	rt.Env = []string{"NOOP_STAMP=" + stamp}
	var began unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &began); err != nil {
		return 0, err
	}
	text, _, err := timed(rt, verb, box)
	if err != nil {
		return 0, err
	}
	if len(text) == 0 {
		text, err = os.ReadFile(stamp)
		err = errors.Join(err, os.Remove(stamp))
	}
	ns, err2 := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return float64(ns-began.Nano()) / 1e6, errors.Join(err, err2)
}

// requests prints the agent's requests to the API server so far per attached pod.
// No pod has been attached twice by then.
func (n *node) requests(r *report) error {
	asked, err := n.cluster.requests()
	if err != nil || asked == nil {
		return err
	}
	fmt.Fprintln(r.out)
	for _, what := range slices.Sorted(maps.Keys(asked)) {
		r.addFigure(requestsPerPod+what, float64(asked[what])/float64(n.attached), "")
	}
	return nil
}

// podWatches counts the watches of pods by the agents of this run, where the
// kubelet reports the node's pods. The audit log has a watch once it has ended,
// which is true for all agents but the last after the restarts of the node.
func (n *node) podWatches(r *report) error {
	asked, err := n.cluster.requests()
	if err != nil || asked == nil {
		return err
	}
	if asked["watch "+netattach.Resource] == 0 {
		return errors.New("the audit log has no watch of definitions either")
	}
	r.addFigure(podWatches, float64(asked["watch pods"]), "")
	return nil
}

// patchAlone measures how long it takes to publish a pod's network-status alone: the
// same PATCH, from a process that does nothing else. PATCHes back to back would take
// only two thirds of the time. A floor's ADD and DEL between them stand in for the
// plugin's other work, during which API server and processors cool down.
func (n *node) patchAlone(r *report) error {
	floor := n.contenders(n.sets[0])[0]
	var took []float64
	var cpu time.Duration
	pods := n.podsOf[noopName][:n.few()]
	for i := range n.pods {
		progress(fmt.Sprintf("PATCH alone: %d of %d", i+1, n.pods))
		pod := pods[i%len(pods)]
		box := n.sandbox(pod, 0)
		if err := errors.Join(floor.add(box), floor.del(box)); err != nil {
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
	r.addQuantiles("a PATCH of network-status alone", took)
	r.addFigure("a PATCH of network-status alone, CPU of API server and etcd", millis(cpu)/float64(len(took)), "ms")
	return nil
}

// traced writes the system calls of one ADD and one DEL into a directory, by
// strace.
func (n *node) traced(dir string) error {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return fmt.Errorf("%w: install strace", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d := n.sets[0]
	who, box := n.manifold(d, statusSync), n.sandbox(n.podsOf[noopName][0], 0)
	if err := errors.Join(who.add(box), who.del(box)); err != nil { // the first call creates directories
		return err
	}
	for _, verb := range []string{"ADD", "DEL"} {
		file := filepath.Join(dir, verb+".strace")
		cmd := n.runtime(d, statusSync).Command(verb, box)
		cmd.Path, cmd.Args = strace, []string{"strace", "-f", "-r", "-y", "-s", "65536", "-o", file, cmd.Path}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		fmt.Println(file)
	}
	return nil
}

// peakMemory follows a process until it exits and returns the peak resident memory
// of its own program, in KiB. The kernel's accounting of an exited process would
// include its parent's memory from before the exec.
func peakMemory(pid int, program string, ended <-chan error) (int64, error) {
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
