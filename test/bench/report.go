package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// series holds the times of one contender for one verb under one load.
type series struct {
	Delegates string `json:"delegates"`
	AtOnce    int    `json:"atOnce"`
	Verb      string `json:"verb"`
	Contender string `json:"contender"`
	summary
	CPUMillis   float64     `json:"cpuMsPerCall"`      // of the contender's processes and the delegates
	AgentMillis float64     `json:"agentCPUMsPerCall"` // the agent's part of it
	APIMillis   float64     `json:"apiCPUMsPerCall"`   // of API server and etcd, in addition, without what they use when idle
	Rounds      [][]float64 `json:"msByRound"`         // of each call
}

// summary sums up a series, in ms. Simultaneous calls wait for each other, so each
// of their rounds counts as one value, its median.
type summary struct {
	P50 estimate `json:"p50"`
	// P90 is of all calls, P99 of the rounds of calls one at a time; nil if there are
	// too few.
	P90 *float64  `json:"p90,omitempty"`
	P99 *estimate `json:"p99,omitempty"`
	// Over is the median minus the floor's, P99Over the same for the 99th percentile,
	// Ratio the median divided by the floor's; nil for the floor itself.
	Over    *estimate `json:"p50OverFloor,omitempty"`
	P99Over *estimate `json:"p99OverFloor,omitempty"`
	Ratio   *estimate `json:"p50RatioToFloor,omitempty"`
}

// add adds a round of calls, and what they used together.
func (s *series) add(times []float64, u usage) {
	mean := func(of *float64, more time.Duration) {
		rounds := float64(len(s.Rounds))
		*of = (*of*rounds + millis(more)/float64(len(times))) / (rounds + 1)
	}
	mean(&s.CPUMillis, u.node)
	mean(&s.AgentMillis, u.agent)
	mean(&s.APIMillis, u.api)
	s.Rounds = append(s.Rounds, times)
}

// values returns one value for each round.
func (s *series) values() []float64 {
	out := make([]float64, len(s.Rounds))
	for i, times := range s.Rounds {
		out[i] = median(times)
	}
	return out
}

// summarize computes the summary, relative to the floor.
func (s *series) summarize(floor *series) {
	own, base := s.values(), floor.values()
	s.P50 = bootstrap(quantileOf(50), own)
	if calls := slices.Concat(s.Rounds...); enough(len(calls), 90) {
		p90 := quantile(calls, 90)
		s.P90 = &p90
	}
	tail := s.AtOnce == 1 && enough(len(own), 99)
	if tail {
		p99 := bootstrap(quantileOf(99), own)
		s.P99 = &p99
	}
	if s == floor {
		return
	}
	over, ratio := bootstrap(quantileOver(50), base, own), bootstrap(medianRatio, base, own)
	s.Over, s.Ratio = &over, &ratio
	if tail {
		p99 := bootstrap(quantileOver(99), base, own)
		s.P99Over = &p99
	}
}

// figure is a single number.
type figure struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	estimate
}

// report collects the measurements and prints them as they come.
type report struct {
	Run     provenance `json:"run"`
	Series  []*series  `json:"series"`
	Figures []figure   `json:"figures"`
	Targets []outcome  `json:"targets"`
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

// addFigure records and prints a number that does not vary, or was measured once.
func (r *report) addFigure(name string, value float64, unit string) {
	r.addEstimate(name, estimate{Value: value}, unit)
}

// addEstimate records and prints a number with its interval.
func (r *report) addEstimate(name string, e estimate, unit string) {
	r.Figures = append(r.Figures, figure{name, unit, e})
	fmt.Fprintf(r.out, "%-66s %10s %s\n", name, e, unit)
}

// addQuantiles records and prints the quantiles of times in ms for which there are
// enough of them.
func (r *report) addQuantiles(name string, took []float64) {
	for _, percent := range []int{50, 90, 99} {
		if enough(len(took), percent) {
			r.addEstimate(fmt.Sprintf("%s, p%d", name, percent), bootstrap(quantileOf(percent), took), "ms")
		}
	}
}

// addComparison records series of one verb, the floor's first, and prints them
// relative to the floor.
func (r *report) addComparison(all []*series) {
	r.Series = append(r.Series, all...)
	floor := all[0]
	fmt.Fprintf(r.out, "\n%s, %s delegates, %d at once, %d rounds\n", floor.Verb, floor.Delegates, floor.AtOnce, len(floor.Rounds))
	const row = "  %-10s %-22s %8s %-22s %8s %8s %8s %7s  %-22s %s\n"
	fmt.Fprintf(r.out, row, "", "p50 ms", "p90", "p99", "CPU ms", "agent's", "+ API's", "of CPU", "p50 over", "ratio")
	for _, s := range all {
		s.summarize(floor)
		number := func(v float64) string { return fmt.Sprintf("%.2f", v) }
		p90, p99, cpu, over, ratio := "-", "-", "", "", ""
		if s.P90 != nil {
			p90 = number(*s.P90)
		}
		if s.P99 != nil {
			p99 = s.P99.String()
		}
		if s != floor {
			cpu, over, ratio = number((s.CPUMillis+s.APIMillis)/floor.CPUMillis), s.Over.String(), s.Ratio.String()
		}
		if s.Over != nil && s.Over.bounds().Low <= 0 && s.Over.bounds().High >= 0 {
			ratio += "  (difference not significant)"
		}
		fmt.Fprintf(r.out, row, s.Contender, s.P50, p90, p99, number(s.CPUMillis), number(s.AgentMillis), number(s.APIMillis), cpu, over, ratio)
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
