//go:build sriovlab

package checks

import (
	"errors"
	"maps"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/manifold-cni/manifold/internal/reconcile"
)

// counts are numbers of VFs by kind of finding; kinds without a VF are absent.
type counts map[reconcile.Kind]int

// scrape returns the running agent's metrics.
func (n *node) scrape() map[string]*dto.MetricFamily {
	n.t.Helper()
	resp, err := http.Get("http://" + listenAddress + "/metrics")
	n.must(err)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	n.must(errors.Join(err, resp.Body.Close()))
	return families
}

// shows waits until the running agent's metrics count exactly these findings.
func (n *node) shows(want counts) {
	n.t.Helper()
	var found counts
	defer func() {
		if n.t.Failed() {
			n.t.Logf("the agent's metrics count findings %v, want %v", found, want)
		}
	}()
	n.eventually("the agent's metrics to count the findings", func() bool {
		found = byKind(n.scrape()["manifold_device_findings"], "")
		return maps.Equal(found, want)
	})
}

// hasRepaired waits until the running agent's metrics count exactly these repairs, and
// no failed one.
func (n *node) hasRepaired(want counts) {
	n.t.Helper()
	n.eventually("the agent's metrics to count repairs", func() bool {
		of := n.scrape()["manifold_device_repairs_total"]
		return maps.Equal(byKind(of, "success"), want) && len(byKind(of, "failure")) == 0
	})
}

// byKind reads a metric's values by kind, of the series with this outcome; an empty
// outcome means the series without that label.
func byKind(family *dto.MetricFamily, outcome string) counts {
	out := counts{}
	for _, m := range family.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if value := m.GetGauge().GetValue() + m.GetCounter().GetValue(); value > 0 && labels["outcome"] == outcome {
			out[reconcile.Kind(labels["kind"])] = int(value)
		}
	}
	return out
}
