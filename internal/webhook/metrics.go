package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/manifold-cni/manifold/internal/rules"
)

// metrics are the webhook's own metrics. controller-runtime has those of requests and
// their latency.
type metrics struct {
	findings *prometheus.CounterVec
	devices  prometheus.Counter
	expiry   *prometheus.GaugeVec
	closed   prometheus.Counter
}

// newMetrics creates the metrics and registers them.
func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "manifold_webhook_findings_total", Help: "Problems found in objects, by kind and severity; errors refuse the object.",
		}, []string{"kind", "severity"}),
		// No label for the resource: anybody who may write definitions could create any
		// number of series.
		devices: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "manifold_webhook_injected_devices_total", Help: "Devices requested on behalf of pods.",
		}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "manifold_webhook_certificate_expiry_timestamp_seconds", Help: "When the newest authority and the serving certificate expire.",
		}, []string{"certificate"}),
		closed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "manifold_webhook_connections_closed_total", Help: "Connections closed or refused because their source, or all sources together, took too much.",
		}),
	}
	for _, c := range []prometheus.Collector{m.findings, m.devices, m.expiry, m.closed} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// found counts a finding about an object of kind.
func (m *metrics) found(kind string, s rules.Severity) {
	m.findings.WithLabelValues(kind, string(s)).Inc()
}

// injected counts devices that were requested for a pod.
func (m *metrics) injected(devices int64) { m.devices.Add(float64(devices)) }

// expires records when the newest authority and the serving certificate expire.
func (m *metrics) expires(ca, serving time.Time) {
	m.expiry.WithLabelValues("authority").Set(float64(ca.Unix()))
	m.expiry.WithLabelValues("serving").Set(float64(serving.Unix()))
}
