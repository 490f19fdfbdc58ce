package agent

import (
	"context"
	"encoding/json"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/podresources"
)

// Inspect implements plan.Inspector.
func (a *Agent) Inspect(ctx context.Context, q plan.Question) (json.RawMessage, error) {
	const op = "inspect"
	if q.About != plan.AboutNode || a.src.View == nil {
		return nil, cnierr.New(op, cnierr.Decode, "this agent knows nothing about %q", q.About).
			WithFix("use the kubectl-manifold of the agent's release")
	}
	raw, err := json.Marshal(a.src.View(ctx))
	if err != nil {
		return nil, cnierr.New(op, cnierr.Other, "%w", err)
	}
	return raw, nil
}

// view reads the node.
func (c *Config) view(ctx context.Context, file *checkpoint.File, live *podresources.Client) *nodeview.View {
	return nodeview.Read(ctx, nodeview.Sources{
		Node: c.Node, Journal: journal.Dir{Path: c.CNIDir}, SysRoot: c.SysRoot,
		Holders:  func(ctx context.Context) (map[string]nodeview.Holder, error) { return holders(ctx, file, live) },
		Findings: func(ctx context.Context) ([]reconcile.Finding, error) { return c.reconciler(file, live).Scan(ctx) },
	})
}

// View reads the node of a configuration without an agent.
func View(ctx context.Context, c *Config) *nodeview.View {
	file, live, done := c.kubelet()
	defer done()
	return c.view(ctx, file, live)
}
