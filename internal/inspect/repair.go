package inspect

import (
	"context"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Repair is what is done about a finding.
type Repair struct {
	reconcile.Finding
	Action string `json:"action"` // what was done, or with a dry run would be
	Left   bool   `json:"left"`   // it stays as it is
}

// Repair undoes what was left behind on the node's VFs, or says what it would do.
// The error is what could not be looked at or repaired; with nil repairs nothing
// was.
func (l Local) Repair(ctx context.Context, dryRun bool) ([]Repair, error) {
	conf, err := agent.ReadConfig(l.Config)
	if err != nil {
		return nil, err
	}
	r, done := agent.NewReconciler(conf)
	defer done()
	found, problem := r.Scan(ctx)
	out := []Repair{}
	for _, f := range found {
		action, repairable := r.Proposal(ctx, f)
		one := Repair{Finding: f, Action: action, Left: !repairable}
		if repairable && !dryRun {
			if err := r.Repair(ctx, f); err != nil {
				one.Action, one.Left = "nothing: "+err.Error(), true
			}
		}
		out = append(out, one)
	}
	return out, problem
}
