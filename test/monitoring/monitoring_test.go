package monitoring

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/test/harness"
)

const root = "../.."

func rules(t *testing.T) []Rule {
	t.Helper()
	out, err := Rules(root)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func panels(t *testing.T) map[string][]string {
	t.Helper()
	out, err := Panels(root)
	if err != nil {
		t.Fatal(err)
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

// TestAlertRules proves that the alert rules pass promtool's lint and rule tests, that
// every alert is tested, and that the troubleshooting page has an entry for each.
func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", filepath.Join(root, Dir, "alerts.yaml"))
	promtool(t, "test", "rules", "testdata/alerts_test.yaml")
	raw, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if !regexp.MustCompile(`alertname: ` + r.Alert + "\n").Match(raw) {
			t.Errorf("alert %s is not tested", r.Alert)
		}
		if !bytes.Contains(page, []byte("\n| `"+r.Alert+"` |")) {
			t.Errorf("the troubleshooting page has no entry for alert %s", r.Alert)
		}
	}
}

// TestDashboardQueriesParse proves that Prometheus parses the dashboard's queries. It
// checks them as expressions of recording rules.
func TestDashboardQueriesParse(t *testing.T) {
	g := Group{Name: "dashboard"}
	for _, exprs := range panels(t) {
		for _, e := range exprs {
			g.Rules = append(g.Rules, Rule{Record: "query", Expr: e})
		}
	}
	raw, err := yaml.Marshal(map[string][]Group{"groups": {g}})
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}

// TestQueriesAskForWhatThereIs proves that every agent metric in a query exists and has
// the labels that the query uses, and that the dashboard shows every metric.
func TestQueriesAskForWhatThereIs(t *testing.T) {
	shown := map[string]bool{}
	for title, exprs := range panels(t) {
		for _, e := range exprs {
			agents(t, title, e)
			for _, s := range Selectors(e) {
				if d, _ := find(s.Series); d != nil {
					shown[d.Name] = true
				}
			}
		}
	}
	for _, r := range rules(t) {
		agents(t, r.Alert, r.Expr)
	}
	for _, d := range metrics.Definitions() {
		if !shown[d.Name] {
			t.Errorf("the dashboard does not show %s", d.Name)
		}
	}
}

// agents reports what a query asks of the agent that does not exist.
func agents(t *testing.T, where, query string) {
	t.Helper()
	if OfWebhook(query) {
		return
	}
	for _, m := range Missing(query, func(series string) ([]string, bool) {
		d, labels := find(series)
		return labels, d != nil
	}) {
		t.Errorf("%s: %s", where, m)
	}
}

// find returns the definition of a series and its labels, or nil if there is none. It
// knows the series of a histogram.
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
