package inspect

import (
	"encoding/json"

	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
)

// Explain plans the pods and templates of pods among docs, as if the kubelet had
// allocated what their limits ask for, and says why. Objects that say no namespace
// are of namespace; config is as for [Lint]. What cannot be decoded is a problem.
func Explain(docs []Document, namespace string, config json.RawMessage) ([]*nodeview.Explanation, []Problem, error) {
	r, err := rules.New(config, notGiven)
	if err != nil {
		return nil, nil, err
	}
	d := sortOut(docs, namespace)
	var out []*nodeview.Explanation
	for _, p := range d.pods {
		e := &nodeview.Explanation{Version: nodeview.Version, Pod: plan.Pod{Namespace: p.pod.Namespace, Name: p.pod.Name}}
		e.Say("pod", "%s of %s, as if the kubelet had allocated what its limits ask for", p.doc.Object.GetKind(), p.doc.Source)
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

// explainDefinition says whether a definition is among the files.
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
