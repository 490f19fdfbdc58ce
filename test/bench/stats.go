package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// confidence is that of every interval, and resamples how often the rounds are drawn
// anew for one.
const (
	confidence = 0.95
	resamples  = 1000
)

// fewest is how many rounds an interval takes: the median lies between the lowest and
// the highest of five with 94 %, of four with 88 %.
const fewest = 5

// beyond is how many values lie above a quantile that is worth saying: with fewer it
// is the chance of single calls.
const beyond = 10

// interval holds a value with some confidence.
type interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// estimate is a value that was measured, and the interval that it lies in; nil for
// what does not vary, or was measured once.
type estimate struct {
	Value    float64   `json:"value"`
	Interval *interval `json:"interval95,omitempty"`
}

// bounds are the interval's, or the value where it has none.
func (e estimate) bounds() interval {
	if e.Interval == nil {
		return interval{e.Value, e.Value}
	}
	return *e.Interval
}

// quantile returns the smallest of the values that so many percent of them do not
// exceed (the nearest rank).
func quantile(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(1, (len(sorted)*percent+99)/100)-1]
}

func median(values []float64) float64 { return quantile(values, 50) }

// enough says whether there are so many values that a quantile of them is worth
// saying.
func enough(values, percent int) bool { return values*(100-percent) >= 100*beyond }

// bootstrap returns a statistic of samples that have a value for each round, and its
// interval: between the percentiles of what the statistic is of rounds drawn from
// these at random. The same rounds are drawn of all samples, since what disturbs one
// contender in a round disturbs the others. The same samples always give the same;
// too few rounds give no interval.
func bootstrap(statistic func(samples [][]float64) float64, samples ...[]float64) estimate {
	rounds := len(samples[0])
	if rounds < fewest {
		return estimate{Value: statistic(samples)}
	}
	random := rand.New(rand.NewPCG(1, 2))
	drawn := make([][]float64, len(samples))
	for s := range samples {
		drawn[s] = make([]float64, rounds)
	}
	found := make([]float64, resamples)
	for i := range found {
		for to := range rounds {
			from := random.IntN(rounds)
			for s := range samples {
				drawn[s][to] = samples[s][from]
			}
		}
		found[i] = statistic(drawn)
	}
	slices.Sort(found)
	const outside = (1 - confidence) / 2 * resamples
	return estimate{statistic(samples), &interval{found[int(outside)], found[resamples-1-int(outside)]}}
}

// quantileOf is the quantile of one sample.
func quantileOf(percent int) func([][]float64) float64 {
	return func(of [][]float64) float64 { return quantile(of[0], percent) }
}

// quantileOver is the distance of the second sample's quantile from the first's.
func quantileOver(percent int) func([][]float64) float64 {
	return func(of [][]float64) float64 { return quantile(of[1], percent) - quantile(of[0], percent) }
}

// medianRatio is the second sample's median by the first's.
func medianRatio(of [][]float64) float64 { return median(of[1]) / median(of[0]) }

// String returns the value with its interval.
func (e estimate) String() string {
	if e.Interval == nil {
		return fmt.Sprintf("%.2f", e.Value)
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", e.Value, e.Interval.Low, e.Interval.High)
}
