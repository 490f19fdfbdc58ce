// Package monitoring tests the alert rules and the dashboard in deploy/monitoring.
// Prometheus's own rule tests test the alert rules. Every query must parse, and may only
// ask for existing metrics and labels: those of the agent are defined in one place, and
// those of the webhook are what a running webhook exposes. The tests of test/admission
// check the latter, so the functions that read queries are not in test files.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Dir is the directory of the rules and the dashboard, relative to the tree's root.
const Dir = "deploy/monitoring"

// Rule is an alert rule or a recording rule.
type Rule struct {
	Alert  string `json:"alert,omitempty"`
	Record string `json:"record,omitempty"`
	Expr   string `json:"expr"`
}

// Group is a group of rules.
type Group struct {
	Name  string `json:"name"`
	Rules []Rule `json:"rules"`
}

// Rules returns the alert rules of the tree at root.
func Rules(root string) ([]Rule, error) {
	raw, err := os.ReadFile(filepath.Join(root, Dir, "alerts.yaml"))
	if err != nil {
		return nil, err
	}
	var f struct {
		Groups []Group `json:"groups"`
	}
	if err := yaml.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("read the alert rules: %w", err)
	}
	var out []Rule
	for _, g := range f.Groups {
		out = append(out, g.Rules...)
	}
	return out, nil
}

// Panels returns the dashboard's queries by panel title, with values in place of the
// dashboard's variables.
func Panels(root string) (map[string][]string, error) {
	raw, err := os.ReadFile(filepath.Join(root, Dir, "dashboard.json"))
	if err != nil {
		return nil, err
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("read the dashboard: %w", err)
	}
	out := map[string][]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out[p.Title] = append(out[p.Title], strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr))
		}
	}
	if len(out) != len(d.Panels) {
		return nil, fmt.Errorf("%d panels have %d titles with queries", len(d.Panels), len(out))
	}
	return out, nil
}

// Selector is a series that a query selects, and the labels it selects by.
type Selector struct {
	Series string
	Labels []string
}

var (
	selector = regexp.MustCompile(`((?:manifold|controller_runtime)_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`by \(([^)]*)\)`)
)

// Selectors returns the series that a query selects.
func Selectors(query string) []Selector {
	var out []Selector
	for _, m := range selector.FindAllStringSubmatch(query, -1) {
		s := Selector{Series: m[1]}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			s.Labels = append(s.Labels, l[1])
		}
		out = append(out, s)
	}
	return out
}

// Grouping returns the labels that a query groups by.
func Grouping(query string) []string {
	var out []string
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for _, l := range strings.Split(g[1], ",") {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

// OfWebhook tells whether a query selects series of the webhook.
func OfWebhook(query string) bool {
	return strings.Contains(query, "manifold_webhook_")
}

// Missing describes what a query asks for that does not exist. labels returns the
// labels of a series, and false if there is no such series.
func Missing(query string, labels func(series string) ([]string, bool)) []string {
	var out []string
	known := map[string]bool{"instance": true} // Prometheus adds it to every series
	selectors := Selectors(query)
	if len(selectors) == 0 {
		out = append(out, "the query selects no metric")
	}
	for _, s := range selectors {
		own, ok := labels(s.Series)
		if !ok {
			out = append(out, "there is no metric "+s.Series)
			continue
		}
		has := map[string]bool{"instance": true}
		for _, l := range own {
			has[l], known[l] = true, true
		}
		for _, l := range s.Labels {
			if !has[l] {
				out = append(out, s.Series+" has no label "+l)
			}
		}
	}
	for _, l := range Grouping(query) {
		if !known[l] {
			out = append(out, "no selected metric has label "+l)
		}
	}
	return out
}
