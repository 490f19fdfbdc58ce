package inspect

import (
	"context"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Repair is what is done about a finding on a node, or with a dry run would be.
type Repair struct {
	Node string `json:"node"`
	reconcile.Proposal
}

// Proposed returns what repairs would do on nodes, as their agents see them. That one
// does not say it becomes a problem of its view.
func Proposed(views []*nodeview.View) []Repair {
	out := []Repair{}
	for _, v := range views {
		if len(v.Proposals) < len(v.Findings) {
			v.Problems = append(v.Problems, "its agent is of an older release, and does not say what a repair would do")
		}
		for _, p := range v.Proposals {
			out = append(out, Repair{v.Node, p})
		}
	}
	return out
}

// Repair undoes what was left behind on the node's VFs, or says what it would do.
// The error is what could not be looked at or repaired; with nil repairs nothing
// was. Other nodes than this one are refused.
func (l Local) Repair(ctx context.Context, dryRun bool, nodes ...string) ([]Repair, error) {
	conf, err := configfile.ReadAgent(l.Config)
	if err == nil {
		err = isThis(conf.Node, nodes)
	}
	if err != nil {
		return nil, err
	}
	r, done := agent.NewReconciler(conf)
	defer done()
	found, problem := r.Scan(ctx)
	out := []Repair{}
	for _, p := range r.Proposals(ctx, found) {
		if !p.Left && !dryRun {
			if err := r.Repair(ctx, p.Finding); err != nil {
				p.Action, p.Left = "nothing: "+err.Error(), true
			}
		}
		out = append(out, Repair{conf.Node, p})
	}
	return out, problem
}
