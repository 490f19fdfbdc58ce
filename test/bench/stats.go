package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// confidence is the confidence level of every interval, and resamples the number of
// times that the rounds are resampled for one.
const (
	confidence = 0.95
	resamples  = 1000
)

// minRounds is the number of rounds that an interval needs: the median lies between
// the lowest and the highest of five with 94 %, of four with 88 %.
const minRounds = 5

// blocks is the number of blocks of successive rounds that a resample consists of. The
// machine drifts, so rounds are like the rounds next to them: drawn one by one they would
// hide that, and give intervals that are two to three times too narrow.
const blocks = 20

// minBeyond is how many values must lie above a quantile worth reporting: with fewer,
// it depends on the chance of single calls.
const minBeyond = 10

// interval contains a value with some confidence.
type interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// estimate is a measured value and its interval; nil for a value that does not
// vary, or was measured once.
type estimate struct {
	Value    float64   `json:"value"`
	Interval *interval `json:"interval95,omitempty"`
}

// bounds returns the interval, or the value itself if there is none.
func (e estimate) bounds() interval {
	if e.Interval == nil {
		return interval{e.Value, e.Value}
	}
	return *e.Interval
}

// quantile returns the smallest of the values that at least percent of them do not
// exceed (nearest rank).
func quantile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(1, (len(sorted)*percent+99)/100)-1]
}

func median(values []float64) float64 { return quantile(values, 50) }

// enough reports whether there are enough values for a quantile worth reporting.
func enough(values, percent int) bool { return values*(100-percent) >= 100*minBeyond }

// bootstrap returns a statistic of samples that have one value per round, and its
// interval: the percentiles of the statistic over resampled rounds. A resample draws
// blocks of successive rounds, and continues with the first round after the last
// (circular block bootstrap). It draws the same rounds from all samples, since what
// disturbs one contender in a round disturbs the others. The interval holds within this
// run: another run may find the machine in another state. The same samples always give
// the same result; too few rounds give no interval.
func bootstrap(statistic func(samples [][]float64) float64, samples ...[]float64) estimate {
	rounds := len(samples[0])
	if rounds < minRounds {
		return estimate{Value: statistic(samples)}
	}
	random := rand.New(rand.NewPCG(1, 2))
	drawn := make([][]float64, len(samples))
	for s := range samples {
		drawn[s] = make([]float64, rounds)
	}
	length := max(1, rounds/blocks)
	found := make([]float64, resamples)
	for i := range found {
		var from int
		for to := range rounds {
			if to%length == 0 {
				from = random.IntN(rounds)
			}
			for s := range samples {
				drawn[s][to] = samples[s][(from+to%length)%rounds]
			}
		}
		found[i] = statistic(drawn)
	}
	slices.Sort(found)
	const outside = (1 - confidence) / 2 * resamples
	return estimate{statistic(samples), &interval{found[int(outside)], found[resamples-1-int(outside)]}}
}

// quantileOf returns the statistic that is the quantile of one sample.
func quantileOf(percent int) func([][]float64) float64 {
	return func(of [][]float64) float64 { return quantile(of[0], percent) }
}

// quantileOver returns the statistic that is the second sample's quantile minus the
// first's.
func quantileOver(percent int) func([][]float64) float64 {
	return func(of [][]float64) float64 { return quantile(of[1], percent) - quantile(of[0], percent) }
}

// medianRatio is the second sample's median divided by the first's.
func medianRatio(of [][]float64) float64 { return median(of[1]) / median(of[0]) }

// String formats the value with its interval.
func (e estimate) String() string {
	if e.Interval == nil {
		return fmt.Sprintf("%.2f", e.Value)
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", e.Value, e.Interval.Low, e.Interval.High)
}
