package main

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestQuantileIsTheNearestRank(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i)) // descending
	}
	for _, c := range []struct {
		values  []float64
		percent int
		want    float64
	}{
		{hundred, 50, 50}, {hundred, 90, 90}, {hundred, 99, 99}, {hundred, 100, 100},
		{[]float64{3, 1, 2}, 50, 2}, {[]float64{2, 1}, 50, 1}, {[]float64{7}, 99, 7}, {[]float64{7}, 0, 7},
	} {
		if got := quantile(c.values, c.percent); got != c.want {
			t.Errorf("%d %% of %d values: %v, want %v", c.percent, len(c.values), got, c.want)
		}
	}
	if enough(999, 99) || !enough(1000, 99) {
		t.Error("a 99th percentile needs 1,000 values")
	}
}

// What slows a round down for both contenders does not change their difference.
func TestBootstrapDrawsTheSameRoundsOfAllSamples(t *testing.T) {
	floor := []float64{1, 9, 2, 8, 3, 7, 4, 6, 5, 10}
	var own []float64
	for _, v := range floor {
		own = append(own, v+3)
	}
	if e := bootstrap(quantileOver(50), floor, own); e.Value != 3 || *e.Interval != (interval{3, 3}) {
		t.Errorf("distance %v, want 3 in every draw", e)
	}
	e := bootstrap(quantileOf(50), own)
	if e.Value != 8 || e.Interval.Low >= 8 || e.Interval.High <= 8 || e.Interval.Low < slices.Min(own) {
		t.Errorf("median %v, want 8 within its interval", e)
	}
	if again := bootstrap(quantileOf(50), own); *again.Interval != *e.Interval {
		t.Errorf("%v and %v of the same values", e, again)
	}
}

// The same values vary more if successive rounds are alike, as on a machine that drifts,
// than in random order.
func TestDriftWidensTheInterval(t *testing.T) {
	width := func(values []float64) float64 {
		bounds := bootstrap(quantileOf(50), values).bounds()
		return bounds.High - bounds.Low
	}
	random, drifting, state := rand.New(rand.NewPCG(3, 4)), []float64{}, 0.0
	for range 1000 {
		state = 0.9*state + random.NormFloat64()
		drifting = append(drifting, state)
	}
	shuffled := slices.Clone(drifting)
	random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if drift, none := width(drifting), width(shuffled); drift < 2*none {
		t.Errorf("the interval is %.2f wide with drift and %.2f without, want at least twice as wide", drift, none)
	}
}

func TestFewRoundsHaveNoInterval(t *testing.T) {
	if e := bootstrap(quantileOf(50), []float64{1, 2, 3, 4}); e.Value != 2 || e.Interval != nil {
		t.Errorf("%v of four rounds, want only the median", e)
	}
	if e := bootstrap(quantileOf(50), []float64{1, 2, 3, 4, 5}); *e.Interval != (interval{1, 5}) {
		t.Errorf("%v of five rounds, want an interval from the lowest to the highest", e)
	}
}

func TestCallsAtOnceAreOneValue(t *testing.T) {
	s := &series{AtOnce: 3, Rounds: [][]float64{{1, 2, 30}, {4, 5, 60}}}
	if got := s.values(); !slices.Equal(got, []float64{2, 5}) {
		t.Errorf("%v, want each round's median", got)
	}
	if s.summarize(s); s.P90 != nil || s.P99 != nil || s.Over != nil {
		t.Errorf("%+v: six calls are too few for these quantiles, and the floor has no distance from itself", s.summary)
	}
}

func TestTargetIsMetByItsWholeInterval(t *testing.T) {
	of := target{atMost: 5}
	for want, e := range map[string]estimate{
		met:     {4, &interval{3, 5}},
		unknown: {4, &interval{3, 6}},
		missed:  {7, &interval{6, 8}},
	} {
		if got := of.judge(e); got != want {
			t.Errorf("%v of at most 5 is %s, want %s", e, got, want)
		}
	}
	if of.judge(estimate{Value: 5}) != met || of.judge(estimate{Value: 5.1}) != missed {
		t.Error("a value without an interval is not compared as it is")
	}
}

func TestGoBenchmarksHaveAnInterval(t *testing.T) {
	var out strings.Builder
	for i := range minRounds {
		fmt.Fprintf(&out, "BenchmarkPlan-2 100 %d ns/op 64 B/op 311 allocs/op\n", (i+1)*1000)
		fmt.Fprintf(&out, "BenchmarkDecode5000-2 10 %d ns/op 64 B/op 7 allocs/op\n", (i+1)*1_000_000)
	}
	r := &report{out: io.Discard}
	if err := r.addGoBenchmarks([]byte(out.String())); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{planning, decoding} {
		if e := figureOf(name)(r); e.String() != "3.00 [1.00, 5.00]" {
			t.Errorf("%s: %v, want the median and the interval", name, e)
		}
	}
	if e := figureOf(planAllocations)(r); e.Value != 311 || e.Interval != nil {
		t.Errorf("%s: %v, want a single number", planAllocations, e)
	}
	if err := r.addGoBenchmarks([]byte("PASS\n")); err == nil {
		t.Error("benchmarks without results are no error")
	}
}

func TestOnlyTheDefaultWorkloadIsJudged(t *testing.T) {
	for args, want := range map[string]string{
		"":                        "",
		"-json file -beside file": "",
		"-restart 250 -idle 60s":  "", // the defaults
		"-json file -fake":        "-fake=true",
		"-soak 100 -levels 1":     "-levels=1 -soak=100",
	} {
		set := flag.NewFlagSet("", flag.ContinueOnError)
		new(options).flags(set)
		if err := set.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(otherWorkload(set), " "); got != want {
			t.Errorf("%q measures another workload by %q, want %q", args, got, want)
		}
	}
}

func TestIdleShareOfTheMachine(t *testing.T) {
	before, err := parseMachine("cpu  100 0 50 800 50 0 0 0 70 0\ncpu0 1 2 3\n")
	after, err2 := parseMachine("cpu  110 1 55 880 60 1 1 2 75 0\ncpu0 1 2 3\n")
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	// Of 110 ticks, 80 were idle and 10 waited for the disk; a guest's count once.
	if got := after.idleSince(before); got != 90.0/110 {
		t.Errorf("%v of the time was idle, want 90 of 110 ticks", got)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 3 x 5 6 7 8\n"} {
		if _, err := parseMachine(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}
