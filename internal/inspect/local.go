package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Local is the node that the program runs on.
type Local struct {
	Config string // path of the agent's configuration file

	patience time.Duration // how long the agent is waited for; 0: agentTime
}

// agentTime is how long a running agent may take to answer about its node.
const agentTime = 15 * time.Second

// ask asks the agent by its socket. An agent that does not answer in time counts as one
// that does not run: people look at a node when something is broken.
func (l Local) ask(ctx context.Context, conf *configfile.Agent, q plan.Question) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(l.patience, agentTime))
	defer cancel()
	return plan.Client{Socket: conf.Socket}.Inspect(ctx, q)
}

// Views implements [Nodes].
func (l Local) Views(ctx context.Context, nodes []string) ([]*nodeview.View, error) {
	v, err := l.view(ctx)
	if err == nil {
		err = isThis(v.Node, nodes)
	}
	if err != nil {
		return nil, err
	}
	return []*nodeview.View{v}, nil
}

// isThis returns an error unless asked is empty or names only this node.
func isThis(node string, asked []string) error {
	if len(asked) == 0 || slices.Equal(asked, []string{node}) {
		return nil
	}
	return fmt.Errorf("this node is %s: ask about another node through the API server, without --local", node)
}

// Doctor implements [Nodes].
func (l Local) Doctor(ctx context.Context, nodes []string) ([]*nodeview.Diagnosis, error) {
	d := l.Diagnose(ctx)
	return []*nodeview.Diagnosis{d}, isThis(d.Node, nodes)
}

// ViewOf implements [Nodes].
func (l Local) ViewOf(ctx context.Context, _, _ string) (*nodeview.View, error) { return l.view(ctx) }

// view returns the view of the node, from the agent's socket. People look at a node when
// something is broken, so without the agent view reads the files and sockets that the
// agent would read.
func (l Local) view(ctx context.Context) (*nodeview.View, error) {
	conf, err := configfile.ReadAgent(l.Config)
	if err != nil {
		return nil, err
	}
	raw, err := l.ask(ctx, conf, plan.Question{About: plan.AboutNode})
	if err == nil {
		return nodeview.Decode(raw)
	}
	v := agent.View(ctx, conf)
	v.Problems = slices.Insert(v.Problems, 0, "the agent does not answer; its sources were read instead: "+err.Error())
	return v, nil
}

// Explain implements [Nodes]. It asks the agent by its socket; if the agent does not
// answer, it plans from the agent's sources.
func (l Local) Explain(ctx context.Context, namespace, name string) (*nodeview.Explanation, error) {
	conf, err := configfile.ReadAgent(l.Config)
	if err != nil {
		return nil, err
	}
	raw, err := l.ask(ctx, conf, plan.Question{About: plan.AboutPod, Namespace: namespace, Name: name})
	switch {
	case err == nil:
		return nodeview.DecodeExplanation(raw)
	case !plan.IsTransport(err):
		return nil, err
	}
	e, err2 := agent.ExplainOnce(ctx, conf, plan.Pod{Namespace: namespace, Name: name})
	if err2 != nil {
		return nil, err2
	}
	e.Steps = slices.Insert(e.Steps, 0, nodeview.Step{About: "agent", Text: "it does not answer; its sources are asked instead: " + err.Error()})
	return e, nil
}
