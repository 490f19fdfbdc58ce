// Package metrics holds what the agent shows to Prometheus.
//
// Every metric is a [Definition]; the reference page and the tests of the dashboard and
// of the alert rules read the definitions. Names begin with manifold_, and units are
// base units. No label of a counter or histogram grows with the number of pods. Only
// the info metric of attached devices names pods, and its series go when the pods go.
package metrics

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/manifold-cni/manifold/internal/plan"
)

// Metrics is the metrics of one agent. The methods of a nil *Metrics do nothing: an
// agent that serves no metrics counts none.
type Metrics struct {
	registry *prometheus.Registry

	operations, steps, delegates, plans *prometheus.HistogramVec
	failures, differences, publishing   *prometheus.CounterVec
	kubelet, planned, repairs, closed   *prometheus.CounterVec

	mu     sync.Mutex
	values map[string]map[string]bool // seen values of labels that the plugin fills
}

// New returns the metrics of an agent of that release.
func New(release string) *Metrics {
	r := prometheus.NewRegistry()
	m := &Metrics{
		registry:    r,
		operations:  histogram(r, operationDuration, verbBuckets),
		failures:    counter(r, operationFailures),
		steps:       histogram(r, stepDuration, stepBuckets),
		delegates:   histogram(r, delegateDuration, stepBuckets),
		plans:       histogram(r, planDuration, stepBuckets),
		differences: counter(r, verificationFailures),
		publishing:  counter(r, publishFailures),
		kubelet:     counter(r, kubeletCalls),
		planned:     counter(r, plannedDevices),
		repairs:     counter(r, repairs),
		closed:      counter(r, connectionsClosed),
		values:      map[string]map[string]bool{},
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: buildInfo.Name, Help: buildInfo.Help}, buildInfo.Labels)
	build.WithLabelValues(release).Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, what := range []string{PublishStatus, PublishEvent} {
		m.publishing.WithLabelValues(what)
	}
	for _, listener := range []string{ListenerHTTP, ListenerView} {
		m.closed.WithLabelValues(listener)
	}
	return m
}

// Upper bounds of buckets, in seconds. Those of a verb range from a few milliseconds to
// a runtime's timeout; those of a step begin at a tenth of a millisecond.
var (
	verbBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}
	stepBuckets = []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
)

func histogram(r *prometheus.Registry, d Definition, buckets []float64) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.Name, Help: d.Help, Buckets: buckets}, d.Labels)
	r.MustRegister(h)
	return h
}

func counter(r *prometheus.Registry, d Definition) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.Name, Help: d.Help}, d.Labels)
	r.MustRegister(c)
	return c
}

// maxGatherings is how many scrapes are gathered at a time. Each asks the sources of the
// agent and holds all series.
const maxGatherings = 4

// Handler answers a scrape. It leaves out what a collector cannot provide. Scrapes beyond
// maxGatherings wait for their turn. A client that does not read its answer keeps no
// other from its turn: the answer is complete before the client gets its first byte.
func (m *Metrics) Handler() http.Handler {
	gather := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	slots := make(chan struct{}, maxGatherings)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &buffered{ResponseWriter: w, status: http.StatusOK}
		if !within(r.Context(), slots, func() { gather.ServeHTTP(answer, r) }) {
			http.Error(w, "too many scrapes are being answered", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes()) // the caller may be gone
	})
}

// within calls f when one of the slots is free. It returns false if ctx ends first.
func within(ctx context.Context, slots chan struct{}, f func()) bool {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
		f()
		return true
	case <-ctx.Done():
		return false
	}
}

// buffered keeps an answer, except for its header.
type buffered struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// WriteHeader implements http.ResponseWriter.
func (b *buffered) WriteHeader(status int) { b.status = status }

// Write implements http.ResponseWriter.
func (b *buffered) Write(p []byte) (int, error) { return b.body.Write(p) }

// Values of the label outcome.
const (
	success = "success"
	failure = "failure"
)

func outcome(failed bool) string {
	if failed {
		return failure
	}
	return success
}

// Operation counts one call of the plugin.
func (m *Metrics) Operation(op *plan.Operation) {
	if m == nil {
		return
	}
	verb := m.few("verb", op.Verb)
	m.operations.WithLabelValues(verb, outcome(op.Failed)).Observe(op.Took.Duration().Seconds())
	if op.Failed {
		m.failures.WithLabelValues(verb, op.Kind.String()).Inc()
	}
	for _, s := range op.Steps {
		took := s.Took.Duration().Seconds()
		m.steps.WithLabelValues(verb, m.few("step", s.Name)).Observe(took)
		if s.Plugin != "" {
			of := verb
			switch s.Name {
			case plan.StepUndo:
				of = "DEL"
			case plan.StepVersion:
				of = "VERSION"
			}
			m.delegates.WithLabelValues(of, m.few("plugin", s.Plugin), outcome(s.Failed)).Observe(took)
		}
	}
	for _, field := range op.Differed {
		m.differences.WithLabelValues(verb, m.few("field", field)).Inc()
	}
}

// Planned counts one request for a plan, which took that long and returned p or err.
func (m *Metrics) Planned(took time.Duration, p *plan.Plan, err error) {
	if m == nil {
		return
	}
	m.plans.WithLabelValues(outcome(err != nil)).Observe(took.Seconds())
	if err != nil {
		return
	}
	for i := range p.Attachments {
		if d := p.Attachments[i].Device; d != nil {
			m.planned.WithLabelValues(m.few("source", d.Source)).Inc()
		}
	}
}

// KubeletCall counts one call of the PodResources API.
func (m *Metrics) KubeletCall(method, outcome string) {
	if m != nil {
		m.kubelet.WithLabelValues(method, outcome).Inc()
	}
}

// Repaired counts one attempt to repair a VF.
func (m *Metrics) Repaired(kind string, failed bool) {
	if m != nil {
		m.repairs.WithLabelValues(kind, outcome(failed)).Inc()
	}
}

// What is published to the API server.
const (
	PublishStatus = "network-status"
	PublishEvent  = "event"
)

// NotPublished counts a failed write to the API server.
func (m *Metrics) NotPublished(what string) {
	if m != nil {
		m.publishing.WithLabelValues(what).Inc()
	}
}

// The agent's listeners.
const (
	ListenerHTTP = "http"
	ListenerView = "view"
)

// ConnectionClosed counts a connection that a listener closed or refused to keep within
// its bounds.
func (m *Metrics) ConnectionClosed(listener string) {
	if m != nil {
		m.closed.WithLabelValues(listener).Inc()
	}
}

// maxValues bounds the number of values of a label that the plugin fills, and their
// length.
const maxValues = 64

// few returns value, or "other" once the label has too many values. The plugin names
// only installed programs and steps that it knows, so there are few, unless the plugin
// is of another release or broken.
func (m *Metrics) few(label, value string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := m.values[label]
	if seen == nil {
		seen = map[string]bool{}
		m.values[label] = seen
	}
	if !seen[value] && len(seen) >= maxValues || len(value) > maxValues {
		return "other"
	}
	seen[value] = true
	return value
}

// Ready adds the metric of readiness. check is called at each scrape. It returns the
// error of each part of readiness by name, nil for a part that is ready.
func (m *Metrics) Ready(check func() map[string]error) {
	m.registry.MustRegister(&readiness{ready.desc(), check})
}

// readiness runs the checks at each scrape.
type readiness struct {
	desc  *prometheus.Desc
	check func() map[string]error
}

// Describe implements prometheus.Collector.
func (r *readiness) Describe(out chan<- *prometheus.Desc) { out <- r.desc }

// Collect implements prometheus.Collector.
func (r *readiness) Collect(out chan<- prometheus.Metric) {
	for name, err := range r.check() {
		value := 1.0
		if err != nil {
			value = 0
		}
		out <- prometheus.MustNewConstMetric(r.desc, prometheus.GaugeValue, value, name)
	}
}
