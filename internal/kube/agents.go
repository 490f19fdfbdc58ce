package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// How agents are found and asked. The names are those of the Helm chart.
const (
	// AgentSelector selects the agents' pods.
	AgentSelector = "app.kubernetes.io/component=agent,app.kubernetes.io/part-of=manifold"
	// AgentPort is the name of the container port that the view is served on.
	AgentPort = "view"
	// viewerSuffix, appended to the name of the agents' service account, names the
	// account whose tokens the agents accept.
	viewerSuffix = "-viewer"
	// TokenHeader carries the token: the API server's proxy drops Authorization.
	TokenHeader = "Manifold-Token"
	// tokenLife is the shortest life of a token that the API server grants.
	tokenLife = 600 // seconds
	// maxAnswer bounds an agent's answer, in bytes.
	maxAnswer = 32 << 20
)

// Audience returns the audience of tokens for the agent of a node. Such a token is good
// for nothing else, not even for another node, so an impostor can do nothing with a
// token that it receives.
func Audience(node string) string { return "manifold-agent/" + node }

// Agents reaches the agents of a cluster through the API server, as the user of a
// kubeconfig. The user's own credential goes to the API server alone. With it, Agents
// requests a token of the viewer account for each agent (subresource token of that
// service account), and the agent has the API server review this token. The request
// reaches the agent's pod through the subresource proxy.
type Agents struct {
	client    *Client
	namespace string
}

// NewAgents returns the agents in a namespace, reached with the user's configuration
// cfg.
func NewAgents(cfg *rest.Config, namespace string) (*Agents, error) {
	client, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	return &Agents{client, namespace}, nil
}

// Agent is the agent of one node.
type Agent struct {
	Node    string
	pod     string
	port    int32
	account string
}

// List returns the agents, by node. It needs list pods in their namespace.
func (a *Agents) List(ctx context.Context) (map[string]Agent, error) {
	pods := &corev1.PodList{}
	err := a.client.core.Get().Namespace(a.namespace).Resource(resourcePods).
		VersionedParams(&metav1.ListOptions{LabelSelector: AgentSelector}, metav1.ParameterCodec).Do(ctx).Into(pods)
	if err != nil {
		return nil, fmt.Errorf("list the agents' pods in namespace %s: %w", a.namespace, err)
	}
	out := map[string]Agent{}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" || p.DeletionTimestamp != nil && out[p.Spec.NodeName].pod != "" {
			continue // of two pods, keep the one that is not being deleted
		}
		found := Agent{Node: p.Spec.NodeName, pod: p.Name, account: p.Spec.ServiceAccountName + viewerSuffix}
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name == AgentPort {
					found.port = port.ContainerPort
				}
			}
		}
		out[p.Spec.NodeName] = found
	}
	return out, nil
}

// NodeOf returns the node of a pod, empty while it has none. It needs get pods in the
// pod's namespace.
func (a *Agents) NodeOf(ctx context.Context, namespace, name string) (string, error) {
	pod := &corev1.Pod{}
	if err := a.client.get(ctx, a.client.core, resourcePods, namespace, name, "pod "+namespace+"/"+name, pod); err != nil {
		return "", err
	}
	return pod.Spec.NodeName, nil
}

// Get asks an agent for the path at, "/manifold/v1/node" or
// "/manifold/v1/pods/NAMESPACE/NAME". It needs create serviceaccounts/token for the
// viewer account, and get pods/proxy, in the agents' namespace.
func (a *Agents) Get(ctx context.Context, agent Agent, at string) ([]byte, error) {
	if agent.port == 0 {
		return nil, fmt.Errorf("the agent %s/%s has no port named %s: its view is not served", a.namespace, agent.pod, AgentPort)
	}
	life := int64(tokenLife)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{Audience(agent.Node)}, ExpirationSeconds: &life}}
	err := a.client.core.Post().Namespace(a.namespace).Resource("serviceaccounts").Name(agent.account).SubResource("token").
		Body(request).Do(ctx).Into(request)
	if err != nil {
		return nil, fmt.Errorf("request a token of service account %s/%s: %w", a.namespace, agent.account, err)
	}
	body, err := a.client.core.Get().Namespace(a.namespace).Resource(resourcePods).
		Name(fmt.Sprintf("https:%s:%d", agent.pod, agent.port)).SubResource("proxy").Suffix(strings.TrimPrefix(path.Clean(at), "/")).
		SetHeader(TokenHeader, request.Status.Token).MaxRetries(0).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the agent %s/%s: %w", a.namespace, agent.pod, proxied(err))
	}
	raw, err := io.ReadAll(io.LimitReader(body, maxAnswer+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("ask the agent %s/%s: %w", a.namespace, agent.pod, err)
	}
	if len(raw) > maxAnswer {
		return nil, fmt.Errorf("ask the agent %s/%s: its answer exceeds %d bytes", a.namespace, agent.pod, maxAnswer)
	}
	return raw, nil
}

// proxied returns the agent's own words where client-go replaced an answer that is not
// a Status by an error of its own.
func proxied(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return err
	}
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeUnexpectedServerResponse && c.Message != "" && c.Message != "unknown" {
			return fmt.Errorf("%s: %s", http.StatusText(int(status.Status().Code)), strings.TrimSpace(c.Message))
		}
	}
	return err
}

// PodNames returns the names of a namespace's pods. It needs list pods there.
func (a *Agents) PodNames(ctx context.Context, namespace string) ([]string, error) {
	pods := &corev1.PodList{}
	if err := a.client.core.Get().Namespace(namespace).Resource(resourcePods).Do(ctx).Into(pods); err != nil {
		return nil, fmt.Errorf("list pods in namespace %s: %w", namespace, err)
	}
	var out []string
	for i := range pods.Items {
		out = append(out, pods.Items[i].Name)
	}
	return out, nil
}
