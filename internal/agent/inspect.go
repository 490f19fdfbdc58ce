package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Inspect implements plan.Inspector.
func (a *Agent) Inspect(ctx context.Context, q plan.Question) (json.RawMessage, error) {
	const op = "inspect"
	var out any
	switch {
	case q.About == plan.AboutNode && a.src.View != nil:
		out = a.src.View(ctx)
	case q.About == plan.AboutPod && q.Name != "":
		e, err := a.Explain(ctx, plan.Pod{Namespace: q.Namespace, Name: q.Name})
		if err != nil {
			return nil, err
		}
		out = e
	default:
		return nil, cnierr.New(op, cnierr.Decode, "this agent knows nothing about %q", q.About).
			WithFix("use the kubectl-manifold of the agent's release")
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, cnierr.New(op, cnierr.Other, "%w", err)
	}
	return raw, nil
}

// viewOf reads the node.
func viewOf(ctx context.Context, c *configfile.Agent, k *kubelet) *nodeview.View {
	r := reconcilerOf(c, k)
	return nodeview.Read(ctx, nodeview.Sources{
		Node: c.Node, Journal: journal.Dir{Path: c.CNIDir}, SysRoot: c.SysRoot,
		Holders: k.holders, Findings: r.Scan, Proposals: r.Proposals,
	})
}

// View reads the node of a configuration without an agent.
func View(ctx context.Context, c *configfile.Agent) *nodeview.View {
	k := newKubelet(c, nil)
	defer k.close()
	return viewOf(ctx, c, k)
}

// ExplainOnce explains a pod from the sources of a configuration, without an agent.
func ExplainOnce(ctx context.Context, c *configfile.Agent, pod plan.Pod) (e *nodeview.Explanation, err error) {
	log := slog.New(slog.DiscardHandler)
	a, err := Assemble(c, true, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return New(a.Sources, log, nil).Explain(ctx, pod)
}
