package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// Figures that have a target.
const (
	restartRatio      = "all pods after a node's restart, ratio to the floor"
	requestsPerPod    = "requests to the API server per pod: "
	podResourcesCalls = "PodResources calls, all pods with a device attached at once"
	pluginSize        = "plugin, stripped"
	pluginResident    = "plugin, resident at most"
	toFirstDelegate   = "plugin, from its start to its first delegate's"
	agentResident     = "agent, resident after all of them"
	agentIdle         = "agent, CPU of an idle node"
	planning          = "planning a pod's networks"
	planAllocations   = "the same, allocations"
	decoding          = "checkpoint of 5,000 entries, decoded and indexed"
)

// target is what a measurement is to be at most.
type target struct {
	name  string
	most  float64
	unit  string
	value func(*report) (float64, bool) // false for what was not measured
}

// targets are those of the project.
var targets = []target{
	{"ADD p50 over the floor, status published before ADD returns", 6, "ms", over("ADD", statusSync, 50)},
	{"ADD p99 over the floor, the same", 15, "ms", over("ADD", statusSync, 99)},
	{"ADD p50 over the floor, status published after ADD", 4, "ms", over("ADD", statusAsync, 50)},
	{"DEL p50 over the floor", 2, "ms", over("DEL", statusSync, 50)},
	{"ADD p50, 10 pods at once, ratio to the floor", 1.5, "", ratio(10)},
	{"ADD p50, 50 pods at once, ratio to the floor", 1.5, "", ratio(50)},
	{restartRatio, 1.3, "", figureOf(restartRatio)},
	{requestsPerPod + "patch pods", 1, "", figureOf(requestsPerPod + "patch pods")},
	{requestsPerPod + "create events", 1, "", figureOf(requestsPerPod + "create events")},
	{podResourcesCalls, 10, "", figureOf(podResourcesCalls)},
	{pluginSize, 5, "MB", figureOf(pluginSize)},
	{pluginResident, 8, "MiB", figureOf(pluginResident)},
	{toFirstDelegate, 3, "ms", figureOf(toFirstDelegate)},
	{agentResident, 32, "MiB", figureOf(agentResident)},
	{agentIdle, 0.1, "% of a core", figureOf(agentIdle)},
	{"STATUS p50", 5, "ms", func(r *report) (float64, bool) {
		_, s := r.find("STATUS", "manifold", 1)
		if s == nil {
			return 0, false
		}
		return quantile(s.Millis, 50), true
	}},
	{"ADD p50 over the floor, without an agent", 40, "ms", over("ADD", oneShot, 50)},
	{planning, 100, "µs", figureOf(planning)},
	{decoding, 20, "ms", figureOf(decoding)},
}

// oneShot is the contender without an agent.
const oneShot = "one-shot"

// find returns a contender's times with no-op delegates, and the floor's of the
// same measurement, which stands before it.
func (r *report) find(verb, contender string, atOnce int) (floor, s *series) {
	for _, x := range r.Series {
		switch {
		case x.Delegates != noopName || x.Verb != verb || x.AtOnce != atOnce:
		case x.Contender == floorName:
			floor = x
		case x.Contender == contender:
			return floor, x
		}
	}
	return nil, nil
}

// over is a quantile's distance from the floor's, one pod at a time.
func over(verb, contender string, percent int) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		floor, s := r.find(verb, contender, 1)
		if s == nil {
			return 0, false
		}
		return quantile(s.Millis, percent) - quantile(floor.Millis, percent), true
	}
}

// ratio is that of the medians of ADD, many pods at once.
func ratio(atOnce int) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		floor, s := r.find("ADD", statusSync, atOnce)
		if s == nil {
			return 0, false
		}
		return quantile(s.Millis, 50) / quantile(floor.Millis, 50), true
	}
}

// figureOf is a figure as it was measured.
func figureOf(name string) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		for _, f := range r.Figures {
			if f.Name == name {
				return f.Value, true
			}
		}
		return 0, false
	}
}

// targets prints what was measured beside what it is to be.
func (r *report) targets() {
	fmt.Fprintf(r.out, "\n%-66s %8s %10s\n", "", "at most", "measured")
	for _, t := range targets {
		value, measured := t.value(r)
		if !measured {
			continue
		}
		verdict := ""
		if value > t.most {
			verdict = "  above"
		}
		fmt.Fprintf(r.out, "%-66s %8g %10.2f %s%s\n", t.name, t.most, value, t.unit, verdict)
	}
}

// pure runs the Go benchmarks that have a target.
func pure(r *report) error {
	var stderr bytes.Buffer
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^(BenchmarkPlan|BenchmarkDecode5000)$", "-benchmem",
		"github.com/manifold-cni/manifold/internal/planner", "github.com/manifold-cni/manifold/checkpoint")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go test -bench: %w\n%s%s", err, out, &stderr)
	}
	fmt.Fprintln(r.out)
	read := benchfmt.NewReader(bytes.NewReader(out), "")
	for read.Scan() {
		res, ok := read.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		seconds, known := res.Value("sec/op")
		allocs, counted := res.Value("allocs/op")
		if !known || !counted {
			return errors.New("go test -bench: no time or no allocations")
		}
		if strings.HasPrefix(res.Name.String(), "Plan") {
			r.figure(planning, seconds*1e6, "µs")
			r.figure(planAllocations, allocs, "")
		} else {
			r.figure(decoding, seconds*1e3, "ms")
		}
	}
	return read.Err()
}
