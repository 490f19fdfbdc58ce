// Package monitoring tests what deploy/monitoring has for Prometheus and
// Grafana: the alert rules by Prometheus's own rule tests, and of every query
// that it parses and asks for metrics and labels that the agent has.
package monitoring

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/test/harness"
)

const dir = "../../deploy/monitoring"

// ruleFile is a file of rules, as far as it is read here.
type ruleFile struct {
	Groups []group `json:"groups"`
}

type group struct {
	Name  string `json:"name"`
	Rules []rule `json:"rules"`
}

type rule struct {
	Alert  string `json:"alert,omitempty"`
	Record string `json:"record,omitempty"`
	Expr   string `json:"expr"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	if err := yaml.Unmarshal(raw, &f); err != nil || len(f.Groups) != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	return f.Groups[0].Rules
}

// queries returns the dashboard's queries by panel, with its variables replaced.
func queries(t *testing.T) map[string][]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out[p.Title] = append(out[p.Title], strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr))
		}
	}
	if len(out) != len(d.Panels) || len(out) == 0 {
		t.Errorf("%d panels have %d titles with queries", len(d.Panels), len(out))
	}
	return out
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := harness.Promtool()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", filepath.Join(dir, "alerts.yaml"))
	promtool(t, "test", "rules", "testdata/alerts_test.yaml")
	raw, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if !regexp.MustCompile(`alertname: ` + r.Alert + "\n").Match(raw) {
			t.Errorf("alert %s is not tested", r.Alert)
		}
	}
}

// The dashboard's queries are parsed as the expressions of recording rules.
func TestDashboardQueriesParse(t *testing.T) {
	g := group{Name: "dashboard"}
	for _, exprs := range queries(t) {
		for _, e := range exprs {
			g.Rules = append(g.Rules, rule{Record: "query", Expr: e})
		}
	}
	raw, err := yaml.Marshal(ruleFile{[]group{g}})
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}

// Every metric that is asked for exists, with the labels that it is asked by, and
// the dashboard shows every metric.
func TestQueriesAskForWhatThereIs(t *testing.T) {
	shown := map[string]bool{}
	for title, exprs := range queries(t) {
		for _, e := range exprs {
			for _, name := range asked(t, title, e) {
				shown[name] = true
			}
		}
	}
	for _, r := range rules(t) {
		asked(t, r.Alert, r.Expr)
	}
	for _, d := range metrics.Definitions() {
		if !shown[d.Name] {
			t.Errorf("the dashboard does not show %s", d.Name)
		}
	}
}

var (
	selector = regexp.MustCompile(`(manifold_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`by \(([^)]*)\)`)
)

// asked returns the names of the metrics in a query, and reports what does not
// exist.
func asked(t *testing.T, where, query string) []string {
	t.Helper()
	labels := []string{"instance"} // Prometheus gives it to every series
	var names []string
	for _, m := range selector.FindAllStringSubmatch(query, -1) {
		d, own := find(m[1])
		if d == nil {
			t.Errorf("%s: there is no metric %s", where, m[1])
			continue
		}
		names, labels = append(names, d.Name), append(labels, own...)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "instance" && !slices.Contains(own, l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
		}
	}
	if len(names) == 0 {
		t.Errorf("%s asks for no metric: %s", where, query)
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for _, l := range strings.Split(g[1], ",") {
			if !slices.Contains(labels, strings.TrimSpace(l)) {
				t.Errorf("%s: nothing has label %s", where, l)
			}
		}
	}
	return names
}

// find returns the definition of a series, a histogram's parts included, and its
// labels; nil when there is none.
func find(series string) (*metrics.Definition, []string) {
	all := metrics.Definitions()
	for i := range all {
		d := &all[i]
		switch {
		case d.Type != metrics.Histogram && series == d.Name, d.Type == metrics.Histogram && (series == d.Name+"_count" || series == d.Name+"_sum"):
			return d, d.Labels
		case d.Type == metrics.Histogram && series == d.Name+"_bucket":
			return d, append([]string{"le"}, d.Labels...)
		}
	}
	return nil, nil
}
