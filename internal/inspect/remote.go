package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

// Nodes are the nodes that questions are asked about: [Local] or [Remote].
type Nodes interface {
	// Views returns the views of the nodes named, of all nodes when none is. A node
	// that does not answer has a view that says why.
	Views(ctx context.Context, nodes []string) ([]*nodeview.View, error)
	// ViewOf returns the view of the node that a pod is on.
	ViewOf(ctx context.Context, namespace, name string) (*nodeview.View, error)
	// Explain explains a pod.
	Explain(ctx context.Context, namespace, name string) (*nodeview.Explanation, error)
}

// Remote are the nodes of a cluster, whose agents are asked through the API
// server; see [kube.Agents] for what the user must be allowed to.
type Remote struct{ agents *kube.Agents }

// NewRemote returns the nodes of a cluster; namespace is the agents'.
func NewRemote(cfg *rest.Config, namespace string) (*Remote, error) {
	agents, err := kube.NewAgents(cfg, namespace)
	if err != nil {
		return nil, err
	}
	return &Remote{agents}, nil
}

// Bounds of asking many agents.
const (
	maxAsked  = 8 // at once
	askedTime = 30 * time.Second
)

// Views implements [Nodes].
func (r *Remote) Views(ctx context.Context, nodes []string) ([]*nodeview.View, error) {
	agents, err := r.agents.List(ctx)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		nodes = slices.Sorted(maps.Keys(agents))
	}
	if len(nodes) == 0 {
		return nil, errors.New("there is no agent: is Manifold in another namespace? see --agent-namespace")
	}
	out := make([]*nodeview.View, len(nodes))
	slots := make(chan struct{}, maxAsked)
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			v, err := r.view(ctx, agents, node)
			if err != nil {
				v = &nodeview.View{Version: nodeview.Version, Node: node, Time: time.Now().UTC(), Problems: []string{err.Error()}}
			}
			out[i] = v
		})
	}
	all.Wait()
	return out, nil
}

// view asks one agent.
func (r *Remote) view(ctx context.Context, agents map[string]kube.Agent, node string) (*nodeview.View, error) {
	raw, err := r.ask(ctx, agents, node, "/manifold/v1/node")
	if err != nil {
		return nil, err
	}
	return nodeview.Decode(raw)
}

// ask asks the agent of a node for a path.
func (r *Remote) ask(ctx context.Context, agents map[string]kube.Agent, node, path string) ([]byte, error) {
	agent, ok := agents[node]
	if !ok {
		return nil, fmt.Errorf("node %s has no agent", node)
	}
	ctx, cancel := context.WithTimeout(ctx, askedTime)
	defer cancel()
	return r.agents.Get(ctx, agent, path)
}

// of returns the node of a pod, and the agents.
func (r *Remote) of(ctx context.Context, namespace, name string) (string, map[string]kube.Agent, error) {
	node, err := r.agents.NodeOf(ctx, namespace, name)
	if err == nil && node == "" {
		err = fmt.Errorf("pod %s/%s is not scheduled to a node yet: kubectl describe pod says why", namespace, name)
	}
	if err != nil {
		return "", nil, err
	}
	agents, err := r.agents.List(ctx)
	return node, agents, err
}

// ViewOf implements [Nodes].
func (r *Remote) ViewOf(ctx context.Context, namespace, name string) (*nodeview.View, error) {
	node, agents, err := r.of(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return r.view(ctx, agents, node)
}

// Explain implements [Nodes].
func (r *Remote) Explain(ctx context.Context, namespace, name string) (*nodeview.Explanation, error) {
	node, agents, err := r.of(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	raw, err := r.ask(ctx, agents, node, "/manifold/v1/pods/"+namespace+"/"+name)
	if err != nil {
		return nil, err
	}
	return nodeview.DecodeExplanation(raw)
}
