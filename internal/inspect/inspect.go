// Package inspect answers the questions of people who look at a node or at a
// manifest: what is attached and verified, what was left behind, why a pod gets
// what it gets, what is broken, which mistakes a manifest has. It is what
// kubectl-manifold prints.
//
// Each question is a function that returns plain data with JSON names, which the
// program prints as JSON or YAML, or for people:
//
//	[Lint]     definitions and pods, before they exist
//	[Explain]  why a pod of a manifest would get what it would get
//	[Nodes]    of a node's pods and devices: what is attached, and why; what is
//	           broken, and what to do
//
//	[Orphans]  what of them was left behind
//
// A node is [Local], or [Remote] through the API server. [Local.Bundle] and
// [Remote.Bundle] are all of it in one archive without its secrets. [Proposed] says
// what a repair would undo; the local one alone is repaired, by [Local.Repair].
//
// Nothing here changes a node but Local.Repair, where that is asked for.
package inspect

import (
	"encoding/json"

	"github.com/manifold-cni/manifold/internal/rules"
)

// Severities of a [Problem].
const (
	SeverityError   = string(rules.Error)   // it will be refused, or fail
	SeverityWarning = string(rules.Warning) // it works, and may surprise
)

// Setting is what is known of the cluster that manifests are for.
type Setting struct {
	Namespace string          // of objects that say none
	Config    json.RawMessage // the plugin's configuration on the nodes; nil for the defaults of every key
	Admission bool            // there is a webhook that gives pods what their networks need
}

// Problem is something that is wrong with a document.
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
