package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

// Nodes are the nodes that questions are asked about: [Local] or [Remote].
type Nodes interface {
	// Views returns the views of the named nodes, or of all nodes if none is named. The
	// view of a node that does not answer says why.
	Views(ctx context.Context, nodes []string) ([]*nodeview.View, error)
	// ViewOf returns the view of the node that runs a pod.
	ViewOf(ctx context.Context, namespace, name string) (*nodeview.View, error)
	// Explain explains why a pod gets its attachments and devices.
	Explain(ctx context.Context, namespace, name string) (*nodeview.Explanation, error)
	// Doctor tells what is broken on the named nodes, or on all nodes if none is named,
	// and what to do about it. A node that does not answer is a failed check.
	Doctor(ctx context.Context, nodes []string) ([]*nodeview.Diagnosis, error)
}

// Remote are the nodes of a cluster. Their agents are asked through the API server; see
// [kube.Agents] for the permissions that the user needs.
type Remote struct {
	agents    *kube.Agents
	namespace string
}

// NewRemote returns the nodes of a cluster whose agents run in namespace.
func NewRemote(cfg *rest.Config, namespace string) (*Remote, error) {
	agents, err := kube.NewAgents(cfg, namespace)
	if err != nil {
		return nil, err
	}
	return &Remote{agents, namespace}, nil
}

// Bounds for asking many agents.
const (
	maxAsked  = 8 // agents asked at once
	askedTime = 30 * time.Second
)

// Views implements [Nodes].
func (r *Remote) Views(ctx context.Context, nodes []string) ([]*nodeview.View, error) {
	return each(ctx, r, nodes, r.view, func(node string, err error) *nodeview.View {
		return &nodeview.View{Version: nodeview.Version, Node: node, Time: time.Now().UTC(), Problems: []string{err.Error()}}
	})
}

// each asks the agents of nodes, several at once. failed returns the answer for a node
// whose agent gave none.
func each[T any](ctx context.Context, r *Remote, nodes []string, ask func(context.Context, map[string]kube.Agent, string) (T, error), failed func(string, error) T) ([]T, error) {
	agents, err := r.agents.List(ctx)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		nodes = slices.Sorted(maps.Keys(agents))
	}
	if len(nodes) == 0 {
		return nil, errors.New("there is no agent in this namespace: give the agents' namespace with --agent-namespace")
	}
	out := make([]T, len(nodes))
	slots := make(chan struct{}, maxAsked)
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			answer, err := ask(ctx, agents, node)
			if err != nil {
				answer = failed(node, err)
			}
			out[i] = answer
		})
	}
	all.Wait()
	return out, nil
}

// NodeNames returns the names of the nodes that have an agent.
func (r *Remote) NodeNames(ctx context.Context) ([]string, error) {
	agents, err := r.agents.List(ctx)
	return slices.Sorted(maps.Keys(agents)), err
}

// PodNames returns the names of the pods in a namespace.
func (r *Remote) PodNames(ctx context.Context, namespace string) ([]string, error) {
	return r.agents.PodNames(ctx, namespace)
}

// view asks one agent for its view.
func (r *Remote) view(ctx context.Context, agents map[string]kube.Agent, node string) (*nodeview.View, error) {
	raw, err := r.ask(ctx, agents, node, "/manifold/v1/node")
	if err != nil {
		return nil, err
	}
	return nodeview.Decode(raw)
}

// ask sends the agent of a node a request for a path.
func (r *Remote) ask(ctx context.Context, agents map[string]kube.Agent, node, path string) ([]byte, error) {
	agent, ok := agents[node]
	if !ok {
		return nil, fmt.Errorf("node %s has no agent", node)
	}
	ctx, cancel := context.WithTimeout(ctx, askedTime)
	defer cancel()
	return r.agents.Get(ctx, agent, path)
}

// of returns the node of a pod, and all agents.
func (r *Remote) of(ctx context.Context, namespace, name string) (string, map[string]kube.Agent, error) {
	node, err := r.agents.NodeOf(ctx, namespace, name)
	if errors.Is(err, kube.ErrNotFound) { // admission may have refused the pod: nothing else tells by whom
		if c := r.admission(ctx); c.State == nodeview.CheckFailed || c.State == nodeview.CheckSkipped && c.Fix != "" {
			err = fmt.Errorf("%w; admission: %s; what to do: %s", err, c.Text, c.Fix)
		}
	}
	if err == nil && node == "" {
		err = fmt.Errorf("pod %s/%s is not scheduled to a node yet: run kubectl describe pod to see why", namespace, name)
	}
	if err != nil {
		return "", nil, err
	}
	agents, err := r.agents.List(ctx)
	return node, agents, err
}

// Doctor implements [Nodes]: the agent of each node diagnoses its node. The checks of the
// cluster come last.
func (r *Remote) Doctor(ctx context.Context, nodes []string) ([]*nodeview.Diagnosis, error) {
	out, err := each(ctx, r, nodes, r.doctor, func(node string, err error) *nodeview.Diagnosis {
		fix := "see the agent's pod on the node and its log; on the node itself run kubectl manifold doctor --local"
		if apierrors.IsForbidden(err) { // by the API server: the agent itself was not reached
			fix = "run doctor as a user to whom the Role manifold-view of namespace " + r.namespace + " is bound"
		}
		return &nodeview.Diagnosis{Version: nodeview.Version, Node: node, Checks: []nodeview.Check{{Name: "agent", State: nodeview.CheckFailed, Text: err.Error(), Fix: fix}}}
	})
	if err != nil {
		return nil, err
	}
	return append(out, &nodeview.Diagnosis{Version: nodeview.Version, Checks: []nodeview.Check{r.admission(ctx)}}), nil
}

// doctor asks one agent for its diagnosis.
func (r *Remote) doctor(ctx context.Context, agents map[string]kube.Agent, node string) (*nodeview.Diagnosis, error) {
	raw, err := r.ask(ctx, agents, node, "/manifold/v1/doctor")
	if err != nil {
		return nil, err
	}
	d, err := nodeview.DecodeDiagnosis(raw)
	if err == nil {
		d.Node = node // the agent's flag may override the node name of its file
	}
	return d, err
}

// Bundle writes the archive that the agent of a node makes; see [Local.Bundle].
func (r *Remote) Bundle(ctx context.Context, node string, w io.Writer) error {
	agents, err := r.agents.List(ctx)
	if err != nil {
		return err
	}
	raw, err := r.ask(ctx, agents, node, "/manifold/v1/bundle")
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

// admission checks whether pods that select networks can be created.
func (r *Remote) admission(ctx context.Context) nodeview.Check {
	const name = "admission"
	a, err := r.agents.Admission(ctx)
	switch {
	case err != nil:
		return nodeview.Check{Name: name, State: nodeview.CheckSkipped, Text: "it is not known whether it answers: " + err.Error(),
			Fix: "run doctor as a user to whom the ClusterRole manifold-view is bound"}
	case a == nil:
		return nodeview.Check{Name: name, State: nodeview.CheckSkipped, Text: "not installed"}
	case a.Ready > 0:
		return nodeview.Check{Name: name, State: nodeview.CheckOK, Text: fmt.Sprintf("%d of %d replicas of %s/%s are ready", a.Ready, a.Replicas, a.Namespace, a.Service)}
	}
	text := fmt.Sprintf("no replica of %s/%s is ready, of %d: ", a.Namespace, a.Service, a.Replicas)
	fix := fmt.Sprintf("see its pods: kubectl -n %s get pods -l %s", a.Namespace, kube.WebhookSelector)
	if a.Ignored {
		return nodeview.Check{Name: name, State: nodeview.CheckWarning, Text: text + "pods are created unchecked, and get no devices that they do not request themselves", Fix: fix}
	}
	return nodeview.Check{Name: name, State: nodeview.CheckFailed, Text: text + "the API server refuses pods that select networks",
		Fix: fix + "; until then exempt a namespace with: kubectl label namespace NAME manifold.dev/admission=ignore"}
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
