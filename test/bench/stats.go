package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/perf/benchmath"
)

// confidence is that of every interval and comparison.
const confidence = 0.95

// series is one contender's times of one verb under one load.
type series struct {
	Delegates   string    `json:"delegates"`
	AtOnce      int       `json:"atOnce"`
	Verb        string    `json:"verb"`
	Contender   string    `json:"contender"`
	Millis      []float64 `json:"ms"`
	CPUMillis   float64   `json:"cpuMsPerCall"`      // of the contender's processes and the delegates
	AgentMillis float64   `json:"agentCPUMsPerCall"` // the agent's part of it
	APIMillis   float64   `json:"apiCPUMsPerCall"`   // of API server and etcd, beside it
}

// add adds calls, and what they used together.
func (s *series) add(times []float64, u usage) {
	mean := func(of *float64, more time.Duration) {
		*of = (*of*float64(len(s.Millis)) + millis(more)) / float64(len(s.Millis)+len(times))
	}
	mean(&s.CPUMillis, u.node)
	mean(&s.AgentMillis, u.agent)
	mean(&s.APIMillis, u.api)
	s.Millis = append(s.Millis, times...)
}

// figure is a single number.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// report collects what is measured, and prints it as it comes.
type report struct {
	Series  []*series `json:"series"`
	Figures []figure  `json:"figures"`
	out     io.Writer
}

// write writes everything as JSON; an empty path writes nothing.
func (r *report) write(path string) error {
	if path == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// figure records and prints one number.
func (r *report) figure(name string, value float64, unit string) {
	r.Figures = append(r.Figures, figure{name, value, unit})
	fmt.Fprintf(r.out, "%-66s %10.2f %s\n", name, value, unit)
}

// compared records series of one verb, the floor's first, and prints them with
// their distance from the floor.
func (r *report) compared(all []*series) {
	r.Series = append(r.Series, all...)
	floor := all[0]
	fmt.Fprintf(r.out, "\n%s, %s delegates, %d at once, %d calls each\n", floor.Verb, floor.Delegates, floor.AtOnce, len(floor.Millis))
	fmt.Fprintf(r.out, "  %-10s %8s %17s %8s %8s %8s %8s %8s %9s %7s %7s\n", "", "p50 ms", "95 % of p50", "p90", "p99", "CPU ms", "agent's", "+ API's", "p50 over", "ratio", "of CPU")
	for _, s := range all {
		sample := benchmath.NewSample(slices.Clone(s.Millis), &benchmath.DefaultThresholds)
		p50 := benchmath.AssumeNothing.Summary(sample, confidence)
		fmt.Fprintf(r.out, "  %-10s %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f", s.Contender, p50.Center, p50.Lo, p50.Hi, quantile(s.Millis, 90), quantile(s.Millis, 99), s.CPUMillis, s.AgentMillis, s.APIMillis)
		if s != floor {
			base := quantile(floor.Millis, 50)
			fmt.Fprintf(r.out, " %+9.2f %7.2f %7.2f", p50.Center-base, p50.Center/base, (s.CPUMillis+s.APIMillis)/floor.CPUMillis)
			floorSample := benchmath.NewSample(slices.Clone(floor.Millis), &benchmath.DefaultThresholds)
			if c := benchmath.AssumeNothing.Compare(floorSample, sample); c.P > c.Alpha {
				fmt.Fprintf(r.out, "  (not told apart: p=%.2f)", c.P)
			}
		}
		fmt.Fprintln(r.out)
	}
}

// quantile returns the value below which percent of values are.
func quantile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
