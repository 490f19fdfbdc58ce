package main

import (
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metricsAddress is where the agent serves its metrics, on the loopback of the
// benchmark's own network namespace.
const metricsAddress = "127.0.0.1:9610"

// spent is the time in calls and their steps so far, in ms, and how many calls
// there were, by verb and step; a call itself is the step "".
type spent map[[2]string]struct {
	millis float64
	count  uint64
}

// steps reads what the agent knows of the plugin's calls.
func (n *node) steps() (spent, error) {
	resp, err := http.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	out := spent{}
	for _, name := range []string{"manifold_operation_duration_seconds", "manifold_step_duration_seconds"} {
		for _, m := range families[name].GetMetric() {
			out.add(m)
		}
	}
	return out, nil
}

// add adds one histogram.
func (s spent) add(m *dto.Metric) {
	var key [2]string
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case "verb":
			key[0] = l.GetValue()
		case "step":
			key[1] = l.GetValue()
		}
	}
	sum := s[key]
	sum.millis += 1000 * m.GetHistogram().GetSampleSum()
	sum.count += m.GetHistogram().GetSampleCount()
	s[key] = sum
}

// profile prints where the time of a call went between two readings.
func (r *report) profile(before, after spent) {
	fmt.Fprintln(r.out)
	for _, verb := range []string{"ADD", "DEL"} {
		calls := after[[2]string{verb}].count - before[[2]string{verb}].count
		if calls == 0 {
			continue
		}
		for _, step := range []string{"", "lock", "plan", "journal", "delegate", "verify"} {
			key := [2]string{verb, step}
			name := "inside the plugin, per " + verb
			if step != "" {
				name += ", " + step
			}
			r.figure(name, (after[key].millis-before[key].millis)/float64(calls), "ms")
		}
	}
}
