package inspect

import (
	"slices"

	"github.com/manifold-cni/manifold/internal/rules"
)

// notGiven is what messages say of a definition that is in none of the files.
const notGiven = "is not among the files"

// Lint returns what is wrong with in.Config, then what is wrong with the definitions, pods
// and templates of pods among docs, in the order of docs. Other kinds are skipped. The
// rules are those of admission and of the node's planner, see package rules. The error is
// that of an in.Config that the nodes refuse.
func Lint(docs []Document, in Setting) ([]Problem, error) {
	r, err := in.rules()
	if err != nil {
		return nil, err
	}
	d := sortOut(docs, in.Namespace)
	for _, dd := range d.defDocs {
		d.found(dd.doc, rules.Definition(dd.def))
	}
	for i := range d.pods {
		p := &d.pods[i]
		if in.Admission {
			given, err := p.admit(r, d.definitions)
			if err != nil {
				d.problem(p.doc, SeverityError, p.at(), "%v", err)
				continue
			}
			for _, w := range given.Warnings {
				d.problem(p.doc, SeverityWarning, p.at(), "%s", w)
			}
		}
		d.found(p.doc, r.Pod(p.pod, p.template, d.definitions))
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return index(docs, a) - index(docs, b) })
	return append(in.problems(), d.problems...), nil
}

// index returns the position of a problem's document in docs.
func index(docs []Document, p Problem) int {
	return slices.IndexFunc(docs, func(d Document) bool {
		return d.Source == p.Source && d.Object.GetKind() == p.Kind && d.name() == p.Name && d.Object.GetNamespace() == p.Namespace
	})
}

// found records what the rules found in a document.
func (d *documents) found(doc Document, findings []rules.Finding) {
	for _, f := range findings {
		d.problem(doc, string(f.Severity), f.Field, "%s", f)
	}
}
