// Package inspect answers questions about nodes and manifests: what is attached and
// verified, what was left behind, why a pod gets what it gets, what is broken on a node,
// and which mistakes a manifest has. kubectl-manifold prints its answers.
//
// Each question is a function that returns plain data with JSON names. The program prints
// that data as JSON, as YAML, or as text for people:
//
//	[Lint]     checks definitions and pods before they exist
//	[Explain]  explains why a pod of a manifest would get what it would get
//	[Nodes]    answers for live nodes: what is attached and why, what is broken,
//	           and what to do about it
//
//	[Orphans]  picks from those answers what was left behind
//
// A node is [Local], or [Remote] through the API server. [Local.Bundle] and
// [Remote.Bundle] write all of it into one archive, without secrets. [Proposed] tells
// what repairs would undo; [Local.Repair] does it, on the local node only.
//
// Nothing in this package changes a node, except Local.Repair without a dry run.
package inspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/rules"
)

// Severities of a [Problem].
const (
	SeverityError   = string(rules.Error)   // it will be refused, or fail
	SeverityWarning = string(rules.Warning) // it works, and may surprise
)

// Setting is what is known of the cluster that the manifests are for.
type Setting struct {
	Namespace string          // of objects that name none
	Config    json.RawMessage // the plugin's configuration on the nodes; nil means the defaults of every key
	Source    string          // the file that Config is from
	Admission bool            // a webhook gives pods what their networks need
}

// rules returns the rules of the cluster. Of a node's whole configuration file, the keys
// of Manifold's plugin count.
func (s Setting) rules() (*rules.Rules, error) {
	op := "read " + cmp.Or(s.Source, "plugin's configuration")
	if s.Config == nil {
		return rules.New(nil, notGiven)
	}
	doc, err := configfile.ParseDocument(op, s.Config)
	if err != nil {
		return nil, err
	}
	keys := doc.Plugins
	if len(doc.List) > 0 { // a single configuration may leave out its type
		keys = slices.DeleteFunc(keys, func(p map[string]json.RawMessage) bool { return configfile.StringValue(p["type"]) != "manifold" })
	}
	if len(keys) == 0 {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "the configuration has no plugin of type manifold")
	}
	raw, err := json.Marshal(keys[0])
	if err != nil {
		return nil, cnierr.New(op, cnierr.Decode, "%w", err)
	}
	return rules.New(raw, notGiven)
}

// problems returns what the nodes tolerate in the configuration but what has no effect.
func (s Setting) problems() (out []Problem) {
	if s.Config == nil {
		return nil
	}
	for _, f := range configfile.ValidateKeys(s.Config) {
		p := Problem{Source: s.Source, Field: f.Key, Severity: SeverityError, Text: fmt.Sprintf("line %d: %s", f.Line, f.Text)}
		if f.Warning {
			p.Severity = SeverityWarning
		}
		out = append(out, p)
	}
	return out
}

// Problem is something wrong with a document.
type Problem struct {
	Source    string `json:"source"` // the file
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"` // a path as the API server writes it, for example spec.config
	Severity  string `json:"severity"`        // SeverityError or SeverityWarning
	Text      string `json:"text"`
}

// String returns the problem as one line.
func (p Problem) String() string {
	s := p.Source + ": " + p.Severity + ": "
	if p.Name != "" {
		s += p.Kind + " " + p.Namespace + "/" + p.Name + ": "
	}
	if p.Field != "" {
		s += p.Field + ": "
	}
	return s + p.Text
}
