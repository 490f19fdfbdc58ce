package inspect

import (
	"encoding/json"
	"slices"

	"github.com/manifold-cni/manifold/internal/rules"
)

// notGiven is what is said of a definition that no file has.
const notGiven = "is not among the files"

// Lint returns what is wrong with the definitions, pods and templates of pods
// among docs, in their order; other kinds are passed over. Objects that say no
// namespace are of namespace. The rules are those of admission and of the node's
// planner, see package rules; config is the plugin's configuration on the nodes, nil
// for the defaults of every key.
func Lint(docs []Document, namespace string, config json.RawMessage) ([]Problem, error) {
	r, err := rules.New(config, notGiven)
	if err != nil {
		return nil, err
	}
	d := sortOut(docs, namespace)
	for _, dd := range d.defDocs {
		d.found(dd.doc, rules.Definition(dd.def))
	}
	for _, p := range d.pods {
		d.found(p.doc, r.Pod(p.pod, p.template, d.definitions))
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return index(docs, a) - index(docs, b) })
	return d.problems, nil
}

// index returns the place of a problem's document.
func index(docs []Document, p Problem) int {
	return slices.IndexFunc(docs, func(d Document) bool {
		return d.Source == p.Source && d.Object.GetKind() == p.Kind && d.name() == p.Name && d.Object.GetNamespace() == p.Namespace
	})
}

// found records what the rules find in a document.
func (d *documents) found(doc Document, findings []rules.Finding) {
	for _, f := range findings {
		d.problem(doc, string(f.Severity), f.Field, "%s", f)
	}
}
