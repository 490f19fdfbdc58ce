package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// Figures that are parts of toFirstDelegate.
const (
	toMainOfC  = "no-op delegate in C, from its start to its main"
	toMainOfGo = "Go program that only reads the clock, from its start to its main"
)

// Figures that have a target.
const (
	restartRatio      = "all pods after a node's restart, ratio to the floor"
	requestsPerPod    = "requests to the API server per pod: "
	podWatches        = "watches of pods, with the kubelet's Pods API"
	podResourcesCalls = "PodResources calls, all pods with a device attached at once"
	pluginSize        = "plugin, stripped"
	pluginResident    = "plugin, peak resident memory"
	toFirstDelegate   = "plugin, from its start to its first delegate's start"
	agentResident     = "agent, resident after all ADDs and DELs"
	agentIdle         = "agent, CPU on an idle node"
	planning          = "planning a pod's networks"
	planAllocations   = "planning a pod's networks, allocations"
	decoding          = "checkpoint of 5,000 entries, decoded and indexed"
)

// target is the upper limit of a measurement.
type target struct {
	name   string
	atMost float64
	unit   string
	value  func(*report) *estimate // nil if it was not measured
}

// targets are the project's targets.
var targets = []target{
	{"ADD p50 over the floor, status published before ADD returns", 6, "ms", of("ADD", statusSync, 1, over)},
	{"ADD p99 over the floor, status published before ADD returns", 15, "ms", of("ADD", statusSync, 1, p99Over)},
	{"ADD p50 over the floor, status published after ADD", 4, "ms", of("ADD", statusAsync, 1, over)},
	{"DEL p50 over the floor", 2, "ms", of("DEL", statusSync, 1, over)},
	{"ADD p50, 10 pods at once, ratio to the floor", 1.5, "", of("ADD", statusSync, 10, ratio)},
	{"ADD p50, 50 pods at once, ratio to the floor", 1.5, "", of("ADD", statusSync, 50, ratio)},
	{restartRatio, 1.3, "", figureOf(restartRatio)},
	{requestsPerPod + "patch pods", 1, "", figureOf(requestsPerPod + "patch pods")},
	{requestsPerPod + "create events", 1, "", figureOf(requestsPerPod + "create events")},
	{podWatches, 0, "", figureOf(podWatches)},
	{podResourcesCalls, 10, "", figureOf(podResourcesCalls)},
	{pluginSize, 5, "MB", figureOf(pluginSize)},
	{pluginResident, 8, "MiB", figureOf(pluginResident)},
	{toFirstDelegate, 3, "ms", figureOf(toFirstDelegate)},
	{agentResident, 32, "MiB", figureOf(agentResident)},
	{agentIdle, 0.1, "% of a core", figureOf(agentIdle)},
	{"STATUS p50", 5, "ms", of("STATUS", "manifold", 1, p50)},
	{"ADD p50 over the floor, without an agent", 40, "ms", of("ADD", oneShot, 1, over)},
	{planning, 100, "µs", figureOf(planning)},
	{decoding, 20, "ms", figureOf(decoding)},
}

// oneShot names the contender without an agent.
const oneShot = "one-shot"

// of returns a part of a contender's summary with no-op delegates.
func of(verb, contender string, atOnce int, part func(summary) *estimate) func(*report) *estimate {
	return func(r *report) *estimate {
		for _, s := range r.Series {
			if s.Delegates == noopName && s.Verb == verb && s.Contender == contender && s.AtOnce == atOnce {
				return part(s.summary)
			}
		}
		return nil
	}
}

// Parts of a summary.
func p50(s summary) *estimate     { return &s.P50 }
func over(s summary) *estimate    { return s.Over }
func p99Over(s summary) *estimate { return s.P99Over }
func ratio(s summary) *estimate   { return s.Ratio }

// figureOf returns a figure as it was measured.
func figureOf(name string) func(*report) *estimate {
	return func(r *report) *estimate {
		for _, f := range r.Figures {
			if f.Name == name {
				return &f.estimate
			}
		}
		return nil
	}
}

// outcome is the verdict on a target.
type outcome struct {
	Name    string  `json:"name"`
	AtMost  float64 `json:"atMost"`
	Unit    string  `json:"unit"`
	Verdict string  `json:"verdict"`
	estimate
}

// Verdicts on a target. The whole interval must lie within it; a value without an
// interval, such as a size or a count, is compared as it is.
const (
	met     = "met"
	missed  = "missed"
	unknown = "undecided" // the target lies within the interval
)

// judge returns the verdict on a measured value.
func (t target) judge(e estimate) string {
	switch bounds := e.bounds(); {
	case bounds.High <= t.atMost:
		return met
	case bounds.Low > t.atMost:
		return missed
	default:
		return unknown
	}
}

// judgeTargets prints and judges each measurement that has a target.
func (r *report) judgeTargets() {
	const row = "%-66s %8s %-24s %s\n"
	fmt.Fprintf(r.out, "\n"+row, "", "at most", "measured", "")
	for _, t := range targets {
		e := t.value(r)
		if e == nil {
			continue
		}
		o := outcome{t.name, t.atMost, t.unit, t.judge(*e), *e}
		r.Targets = append(r.Targets, o)
		fmt.Fprintf(r.out, row, o.Name, fmt.Sprint(o.AtMost), e.String()+" "+o.Unit, o.Verdict)
	}
	fmt.Fprintf(r.out, "Brackets hold the %g %% interval of what was measured more than once. A target is met if the interval's upper end does not exceed it,\n"+
		"missed if the lower end is above it, and undecided otherwise. A value without an interval is compared as it is.\n", 100*confidence)
}

// goBenchmarks runs the Go benchmarks that have a target, several times each.
func goBenchmarks(r *report) error {
	var stderr bytes.Buffer
	progress("benchmarks of planner and checkpoint")
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^(BenchmarkPlan|BenchmarkDecode5000)$", "-benchmem", "-count=10", "-benchtime=0.5s",
		"github.com/manifold-cni/manifold/internal/planner", "github.com/manifold-cni/manifold/checkpoint")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go test -bench: %w\n%s%s", err, out, &stderr)
	}
	progress("")
	fmt.Fprintln(r.out)
	return r.addGoBenchmarks(out)
}

// addGoBenchmarks records and prints the results of [goBenchmarks].
func (r *report) addGoBenchmarks(out []byte) error {
	var planned, decoded, allocations []float64
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
			planned, allocations = append(planned, seconds*1e6), append(allocations, allocs)
		} else {
			decoded = append(decoded, seconds*1e3)
		}
	}
	if len(planned) == 0 || len(decoded) == 0 {
		return errors.Join(read.Err(), errors.New("go test -bench: a benchmark has no results"))
	}
	r.addEstimate(planning, bootstrap(quantileOf(50), planned), "µs")
	r.addFigure(planAllocations, median(allocations), "")
	r.addEstimate(decoding, bootstrap(quantileOf(50), decoded), "ms")
	return read.Err()
}
