package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
)

// logLine is what the plugin logs for a call that succeeded.
type logLine struct {
	Message string          `json:"msg"`
	Took    string          `json:"took"`
	CPU     string          `json:"cpu"` // of the plugin alone, without its delegates
	Parts   map[string]part `json:"parts"`
}

// part is how long a call spent in one part, and how often it entered it.
type part struct {
	Took  string `json:"took"`
	Times int    `json:"times"`
}

// Rows of the table besides the plugin's own parts, in ms.
const (
	partStart   = "start and exit of a process that does nothing"
	partElse    = "everything else inside"
	partOutside = "everything outside: reading the request, the log line"
	partWhole   = "the whole call"
	partCPU     = "CPU time of the plugin alone, up to its log line"
)

// parts is how long one contender's calls spent in each part.
type parts struct {
	calls []map[string]float64 // ms of each call, by part
	times map[string]int       // in the last call
}

// partsOfCalls measures where the time of an ADD and a DEL goes, one pod at a time,
// from the plugin's log, next to the time that the same program takes to start, print
// its version and exit.
func (n *node) partsOfCalls(r *report) error {
	d := n.sets[0]
	names := []string{statusSync, statusAsync}
	all := map[string]*parts{}
	for round := range n.few() {
		for _, status := range names {
			pod, err := n.pod(d, nil)
			if err != nil {
				return err
			}
			box := n.sandbox(pod, 0)
			for _, verb := range []string{"ADD", "DEL"} {
				if err := n.awaitRest(); err != nil {
					return err
				}
				p := all[verb+status]
				if p == nil {
					p = &parts{times: map[string]int{}}
					all[verb+status] = p
				}
				if err := partsOfCall(p, n.runtime(d, status), verb, box); err != nil {
					return err
				}
			}
			if err := n.deletePods([]harness.Sandbox{box}, true); err != nil {
				return err
			}
		}
		progress(fmt.Sprintf("where the time goes: %d of %d rounds", round+1, n.few()))
	}
	progress("")
	for _, verb := range []string{"ADD", "DEL"} {
		for _, status := range names {
			r.addParts(verb+", "+status, all[verb+status])
		}
	}
	return nil
}

// partsOfCall measures one call, and one bare start of the plugin along with it.
func partsOfCall(p *parts, rt *harness.Runtime, verb string, box harness.Sandbox) error {
	_, start, err := timed(rt, "VERSION", harness.Sandbox{})
	if err != nil {
		return err
	}
	rt.Conf = append(bytes.TrimSuffix(rt.Conf, []byte("}")), `,"logToStderr":true,"logLevel":"verbose","logFormat":"json"}`...)
	log, whole, err := timed(rt, verb, box)
	if err != nil {
		return err
	}
	return p.add(log, start, whole)
}

// timed returns what a successful call wrote to stderr and how long it took.
func timed(rt *harness.Runtime, verb string, box harness.Sandbox) (log []byte, took time.Duration, err error) {
	began := time.Now()
	res, err := rt.Call(verb, box)
	took = time.Since(began)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("%s: %s %s", verb, res.Stdout, res.Stderr)
	}
	if err != nil {
		return nil, 0, err
	}
	return res.Stderr, took, nil
}

// add adds a call with its log and the time of a bare start.
func (p *parts) add(log []byte, start, whole time.Duration) error {
	lines := json.NewDecoder(bytes.NewReader(log))
	var done logLine
	for done.Message != "done" {
		done = logLine{}
		if err := lines.Decode(&done); err != nil {
			return fmt.Errorf("the plugin's log %q: %w", log, err)
		}
	}
	took, err1 := time.ParseDuration(done.Took)
	cpu, err2 := time.ParseDuration(done.CPU)
	err := errors.Join(err1, err2)
	call := map[string]float64{partStart: millis(start), partWhole: millis(whole), partCPU: millis(cpu)}
	inside := took
	for name, one := range done.Parts {
		t, e := time.ParseDuration(one.Took)
		err = errors.Join(err, e)
		call[name], p.times[name] = millis(t), one.Times
		inside -= t
	}
	call[partElse] = millis(inside)
	p.calls = append(p.calls, call)
	return err
}

// means returns the means of the middle half of all calls, sorted by duration.
// Unlike medians, the parts' means add up to the whole's, and the few calls that
// waited for something else do not count. A bare start is a process of its own, so
// its row is a median.
func (p *parts) means() map[string]float64 {
	sorted := slices.SortedFunc(slices.Values(p.calls), func(a, b map[string]float64) int { return cmp.Compare(a[partWhole], b[partWhole]) })
	middle := sorted[len(sorted)/4 : len(sorted)-len(sorted)/4]
	out := map[string]float64{}
	for _, call := range middle {
		for name, ms := range call {
			out[name] += ms / float64(len(middle))
		}
	}
	var starts []float64
	for _, call := range p.calls {
		starts = append(starts, call[partStart])
	}
	out[partStart] = quantile(starts, 50)
	outside := out[partWhole]
	for name, ms := range out {
		if name != partWhole && name != partCPU {
			outside -= ms
		}
	}
	out[partOutside] = outside
	return out
}

// addParts records and prints where the time of a call goes, largest part first.
func (r *report) addParts(of string, p *parts) {
	fmt.Fprintf(r.out, "\nWhere the time of %s goes: no-op delegates, 1 at once, middle half of %d calls\n  %-58s %8s %6s\n", of, len(p.calls), "", "ms", "times")
	means := p.means()
	row := func(name string) {
		times := ""
		if n := p.times[name]; n > 0 {
			times = fmt.Sprint(n)
		}
		fmt.Fprintf(r.out, "  %-58s %8.2f %6s\n", name, means[name], times)
		r.Figures = append(r.Figures, figure{Name: of + ", " + name, Unit: "ms", estimate: estimate{Value: means[name]}})
	}
	for _, name := range slices.SortedFunc(maps.Keys(means), func(a, b string) int { return cmp.Compare(means[b], means[a]) }) {
		if name != partWhole && name != partCPU {
			row(name)
		}
	}
	row(partWhole)
	row(partCPU)
}
