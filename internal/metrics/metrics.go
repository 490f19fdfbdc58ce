// Package metrics holds what the agent shows to Prometheus.
//
// Every metric is a [Definition]; the reference page, the dashboard's and the
// alert rules' tests read them. Names begin with manifold_, units are base units.
// Counters and histograms have no label that grows with the pods: what is known
// of a pod stands in the info metric of its devices alone, which goes when the
// pod goes.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Types of metrics, as the exposition names them.
const (
	Gauge = "gauge"
)

// Definition is one metric: its full name, its type, the labels that it has, and
// what it says.
type Definition struct {
	Name   string
	Type   string
	Help   string
	Labels []string
}

// desc is the definition in the client library's form.
func (d *Definition) desc() *prometheus.Desc {
	return prometheus.NewDesc(d.Name, d.Help, d.Labels, nil)
}

// The metrics, in the order of the reference page.
var (
	buildInfo = Definition{"manifold_build_info", Gauge, "The agent's release; always 1.", []string{"release"}}
	ready     = Definition{"manifold_ready", Gauge, "1 where that part of the agent's readiness is given, as /readyz says.", []string{"check"}}
)

// Definitions returns every metric of Manifold; those of the Go runtime and of
// the process are beside them.
func Definitions() []Definition { return []Definition{buildInfo, ready} }

// Metrics are one agent's.
type Metrics struct{ registry *prometheus.Registry }

// New returns the metrics of an agent of that release.
func New(release string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: buildInfo.Name, Help: buildInfo.Help}, buildInfo.Labels)
	build.WithLabelValues(release).Set(1)
	m.registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers a scrape. What one collector cannot say is left out.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// Ready shows whether the agent is ready. check is called at each scrape and
// returns each part of readiness with why it is not given, nil where it is.
func (m *Metrics) Ready(check func() map[string]error) {
	m.registry.MustRegister(&readiness{ready.desc(), check})
}

// readiness asks at each scrape.
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
