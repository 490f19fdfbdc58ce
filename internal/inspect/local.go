package inspect

import (
	"context"
	"slices"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Local is the node that the program runs on.
type Local struct {
	Config string // path of the agent's configuration file
}

// View returns the node, by the agent's socket; or, since a node is looked at
// when something is broken, by the files and sockets that the agent reads.
func (l Local) View(ctx context.Context) (*nodeview.View, error) {
	conf, err := agent.ReadConfig(l.Config)
	if err != nil {
		return nil, err
	}
	raw, err := plan.Client{Socket: conf.Socket}.Inspect(ctx, plan.Question{About: plan.AboutNode})
	if err == nil {
		return nodeview.Decode(raw)
	}
	v := agent.View(ctx, conf)
	v.Problems = slices.Insert(v.Problems, 0, "the agent does not answer, its sources were read instead: "+err.Error())
	return v, nil
}
