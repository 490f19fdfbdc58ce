package inspect

import (
	"github.com/manifold-cni/manifold/internal/inject"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
)

// Explain plans the pods and templates of pods among docs as if the kubelet had allocated
// what their limits request, and tells why each gets what it gets. Objects that cannot be
// decoded are problems. The error is that of a wrong in.Config.
func Explain(docs []Document, in Setting) ([]*nodeview.Explanation, []Problem, error) {
	r, err := in.rules()
	if err != nil {
		return nil, nil, err
	}
	d := sortOut(docs, in.Namespace)
	out := []*nodeview.Explanation{} // an empty list in JSON, not null
	for i := range d.pods {
		p := &d.pods[i]
		e := &nodeview.Explanation{Version: nodeview.Version, Pod: plan.Pod{Namespace: p.pod.Namespace, Name: p.pod.Name}}
		e.Say("pod", "%s of %s, as if the kubelet had allocated what its limits request", p.doc.Object.GetKind(), p.doc.Source)
		if in.Admission {
			given, err := p.admit(r, d.definitions)
			if err != nil {
				d.problem(p.doc, SeverityError, p.at(), "%v", err)
				continue
			}
			sayAdmission(e, given)
		}
		refs, err := r.Select(p.pod)
		for _, ref := range refs {
			d.explainDefinition(e, ref)
		}
		if err != nil {
			e.Conclude(nil, err)
		} else {
			e.Conclude(r.Plan(p.pod, d.definitions))
		}
		out = append(out, e)
	}
	return out, d.problems, nil
}

// sayAdmission adds what admission gives the pod.
func sayAdmission(e *nodeview.Explanation, given *inject.Injection) {
	for _, op := range given.Operations {
		e.Say("admission", "adds %s", op)
	}
	if len(given.Operations) == 0 {
		e.Say("admission", "adds nothing")
	}
	for _, w := range given.Warnings {
		e.Say("admission", "warns: %s", w)
	}
}

// explainDefinition adds whether a definition is among the files.
func (d *documents) explainDefinition(e *nodeview.Explanation, ref planner.Ref) {
	def := d.definitions[ref]
	switch {
	case def == nil:
		e.Say("definition "+ref.String(), notGiven)
	case def.ResourceName() == "":
		e.Say("definition "+ref.String(), "found, needs no device")
	default:
		e.Say("definition "+ref.String(), "found, needs a device of %s", def.ResourceName())
	}
}
