// Command scale runs the agents of many nodes in one process, each with its own
// kubelet, against one real API server, and measures what grows with the number of
// nodes: watches and their fan-out, PATCHes, memory. docs/scale.md extrapolates the
// cost of a cluster of thousands of nodes from it.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
)

func main() {
	definitions := flag.Int("definitions", 1000, "`number` of definitions in the cluster")
	pods := flag.Int("pods", 5, "`number` of pods that each node attaches")
	nodes := flag.String("nodes", "50,100,200", "ascending `list` of numbers of nodes")
	idle := flag.Duration("idle", 10*time.Second, "how long to measure the API server's idle CPU")
	flag.Parse()
	code, err := harness.Enter(func() error { _, err := apiserver.Build(); return err })
	if err == nil && code < 0 {
		code = 0
		err = run(*nodes, *definitions, *pods, *idle)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		code = 1
	}
	os.Exit(code)
}

// run measures with increasing numbers of nodes.
func run(levels string, definitions, pods int, idle time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "manifold-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := newCluster(dir, definitions)
	if err != nil {
		return err
	}
	defer c.stop()
	size, err := c.definitionBytes(definitions)
	if err != nil {
		return err
	}
	fmt.Printf("%d definitions of %d bytes, %d pods per node, one API server and all agents on %d cores\n\n", definitions, size, pods, runtime.NumCPU())
	fmt.Println("nodes  agent KiB   watches  API server  idle CPU    a definition changes:           a pod's PATCH and Event:")
	fmt.Println("        per node  per node         MiB  % of core   all know  CPU ms: API  agent's  per second  CPU ms: API  agent's")
	for level := range strings.SplitSeq(levels, ",") {
		n, err := strconv.Atoi(level)
		if err != nil || n <= len(c.agents) {
			return fmt.Errorf("-nodes %q: want ascending numbers", levels)
		}
		if err := c.grow(n); err != nil {
			return err
		}
		if err := c.measure(pods, idle); err != nil {
			return err
		}
	}
	return nil
}

// measure prints the line of the current number of nodes.
func (c *cluster) measure(pods int, idle time.Duration) error {
	kib := c.heap()
	harness.Progress("%d nodes: idle for %v", len(c.agents), idle)
	if err := c.rest(idle); err != nil {
		return err
	}
	memory := harness.ProcessMemory(c.server.PID(), "VmRSS:") / 1024
	known, change, err := c.spread()
	if err != nil {
		return err
	}
	perSecond, pod, err := c.publish(pods)
	if err != nil {
		return err
	}
	watches, err := c.watches()
	if err != nil {
		return err
	}
	count := float64(len(c.agents))
	harness.Progress("")
	fmt.Printf("%5d %10.0f %9.2f %11d %10.1f %7.0f ms %12.2f %8.2f %11.0f %12.2f %8.2f\n", len(c.agents), kib/count, (watches-c.watched)/count, memory, 100*c.idle.server,
		millis(known), millis(change.server), millis(change.agents)/count, perSecond, millis(pod.server), millis(pod.agents))
	return nil
}

// heap returns the memory that the agents hold, in KiB: the live heap minus what it was
// without nodes and minus the kubelets.
func (c *cluster) heap() float64 {
	return float64(heapBytes()-c.empty)/1024 - float64(len(c.agents))*c.kubeletKiB
}

// heapBytes returns the live heap of this process, with stacks.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // also frees what the first run finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// changes is the number of definitions that are created one after the other.
const changes = 20

// spread creates definitions, each once all agents know the one before. It returns
// the median time until all agents know one, and what one costs.
func (c *cluster) spread() (known time.Duration, each used, err error) {
	var times []time.Duration
	each, err = c.spend(changes, func() error {
		for i := range changes {
			c.spreads++
			name := fmt.Sprintf("spread-%d", c.spreads)
			began := time.Now()
			if err := c.define(name); err != nil {
				return err
			}
			c.awaitDefinition(name)
			times = append(times, time.Since(began))
			harness.Progress("%d nodes: all agents know %d of %d definitions", len(c.agents), i+1, changes)
		}
		return nil
	})
	if err != nil {
		return 0, used{}, err
	}
	slices.Sort(times)
	return times[len(times)/2], each, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (c *cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}
