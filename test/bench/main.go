// Command bench compares Manifold with a floor: libcni in one running process that
// executes the same delegates. All contenders run in turn on the same machine in
// the same run, each round with pods that nobody has seen before. Only differences
// and ratios count; absolute figures mean little without the floor's.
//
// It needs the real API server, which the first run builds. -fake uses an
// in-process one instead, for a quick look. -json writes every figure, -trace the
// system calls of one ADD and one DEL.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
)

// dirEnv passes the directory of built programs to the process inside the
// namespaces.
const dirEnv = "MANIFOLD_BENCH_DIR"

// options are the command's flags.
type options struct {
	pods        int    // that each contender attaches one at a time
	levels      string // numbers of pods attached at once, ascending
	real        bool   // also measure with real delegates
	fake        bool   // use an in-process API server
	json        string // file for all figures; empty for none
	trace       string // directory for system calls, which are then traced instead of measured; else empty
	beside      string // another build of the plugin; empty for none
	restart     int    // pods that a restarted node has
	idle        time.Duration
	held        int // pods with a device, attached all at once
	definitions int // besides those that pods select
	elsewhere   int // pods of other nodes, for the agent's memory
	soak        int // number of times that pods are attached and released, for the agent's memory
}

// flags defines the flags of o.
func (o *options) flags(set *flag.FlagSet) {
	set.IntVar(&o.pods, "pods", 1000, "`number` of pods that each contender attaches, one at a time; with real delegates a tenth")
	set.StringVar(&o.levels, "levels", "1,10,50", "`list` of numbers of pods attached at once")
	set.BoolVar(&o.real, "real", true, "also measure with bridge, macvlan and host-local as delegates")
	set.BoolVar(&o.fake, "fake", false, "use an in-process API server instead of a real one")
	set.StringVar(&o.json, "json", "", "`file` to write all figures to")
	set.StringVar(&o.trace, "trace", "", "`directory` for the system calls of one ADD and one DEL, by strace, instead of measuring")
	set.StringVar(&o.beside, "beside", "", "`file` of another build of the plugin to measure in turn with this one")
	set.IntVar(&o.restart, "restart", 250, "`number` of pods that a node attaches after a restart")
	set.DurationVar(&o.idle, "idle", time.Minute, "how long to measure the agent's idle CPU")
	set.IntVar(&o.held, "held", 200, "`number` of pods with a device, attached all at once")
	set.IntVar(&o.definitions, "definitions", 1000, "`number` of additional definitions in the cluster")
	set.IntVar(&o.elsewhere, "elsewhere", 5000, "`number` of pods of other nodes, for the agent's memory")
	set.IntVar(&o.soak, "soak", 10_000, "`number` of times that a pod is attached and released, for the agent's memory")
}

// otherWorkload returns the flags, as "-name=value", with which a run measures something
// else than a run with default flags, which the targets are for.
func otherWorkload(set *flag.FlagSet) []string {
	var out []string
	set.VisitAll(func(f *flag.Flag) {
		if f.Value.String() != f.DefValue && f.Name != "json" && f.Name != "beside" {
			out = append(out, "-"+f.Name+"="+f.Value.String())
		}
	})
	return out
}

func main() {
	var o options
	o.flags(flag.CommandLine)
	flag.Parse()
	code, err := harness.Enter(func() error { return build(o) })
	if err == nil && code < 0 {
		code = 0
		err = measure(o, os.Getenv(dirEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

// build builds the programs, outside the namespaces, where modules can be fetched.
func build(o options) error {
	dir, err := os.MkdirTemp("", "manifold-bench-")
	if err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if err := harness.Programs(bin, false); err != nil {
		return err
	}
	if err := errors.Join(harness.CProgram(bin, "test/delegates/noop"), harness.GoProgram(bin, "test/bench/nothing"), harness.GoProgram(bin, "test/bench/clock")); err != nil {
		return err
	}
	if err := install(filepath.Join(bin, "manifold"), filepath.Join(bin, "noop"), filepath.Join(bin, "nothing"), filepath.Join(bin, "clock")); err != nil {
		return err
	}
	if o.real {
		if _, err := harness.PluginDir(); err != nil {
			return err
		}
	}
	if !o.fake {
		if _, err := apiserver.Build(); err != nil {
			return err
		}
	}
	return os.Setenv(dirEnv, dir)
}

// install rewrites programs in one go, as the agent installs the plugin. The kernel
// takes longer to start a file as the linker leaves it, written page by page. The
// agent's own program is not rewritten, since it runs from its image.
func install(programs ...string) error {
	for _, name := range programs {
		raw, err := os.ReadFile(name)
		if err == nil {
			err = renameio.WriteFile(name, raw, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// measure sets up the node, runs every measurement, and prints and writes the
// figures.
func measure(o options, dir string) (err error) {
	defer os.RemoveAll(dir)
	levels, err := parseLevels(o.levels)
	if err != nil {
		return err
	}
	n, err := newNode(o, dir, levels[len(levels)-1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if o.trace != "" {
		return n.traced(o.trace)
	}
	if err := awaitQuiet(); err != nil {
		return err
	}
	r := &report{out: os.Stdout}
	if r.Run, err = begin(); err != nil {
		return err
	}
	fmt.Fprintln(r.out, r.Run)
	for _, d := range n.sets {
		for _, atOnce := range levels {
			if err := n.level(r, d, atOnce); err != nil {
				return err
			}
		}
	}
	// The order counts: requests needs pods that were attached once each, podWatches
	// the restarts, and withoutAgent stops the agent for good.
	for _, next := range []func(*report) error{
		n.requests, n.partsOfCalls, n.patchAlone, n.restart, n.podWatches, n.attachHeld, n.processStarts,
		n.statusCalls, n.agentMemory, n.footprint, n.withoutAgent, goBenchmarks,
	} {
		if err := next(r); err != nil {
			return err
		}
	}
	if other := otherWorkload(flag.CommandLine); len(other) > 0 {
		fmt.Fprintf(r.out, "\nNo verdicts on the targets, which are for the default workload: %s\n", strings.Join(other, " "))
	} else {
		r.judgeTargets()
	}
	if r.Run.LoadAfter, err = load(); err != nil {
		return err
	}
	return r.write(o.json)
}

// parseLevels parses an ascending list of numbers.
func parseLevels(s string) ([]int, error) {
	var out []int
	for _, f := range strings.Split(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("-levels %q: want ascending numbers from 1", s)
		}
		out = append(out, n)
	}
	return out, nil
}
