package inspect

import (
	"context"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Repair is what was done about a finding on a node or, in a dry run, would be.
type Repair struct {
	Node string `json:"node"`
	reconcile.Proposal
}

// Proposed returns what repairs would do on nodes, as their agents see them. The agent of
// an older release does not tell; its view gets a problem that says so.
func Proposed(views []*nodeview.View) []Repair {
	out := []Repair{}
	for _, v := range views {
		if len(v.Proposals) < len(v.Findings) {
			v.Problems = append(v.Problems, "its agent is of an older release and does not tell what a repair would do")
		}
		for _, p := range v.Proposals {
			out = append(out, Repair{v.Node, p})
		}
	}
	return out
}

// Repair undoes what was left behind on the node's VFs, or with dryRun tells what it
// would do. The error is what could not be examined; nil repairs mean that nothing was
// examined at all. It refuses nodes other than this one. A repair that failed has Left
// set and its reason in Action.
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
