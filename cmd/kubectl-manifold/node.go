package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

const defaultConfig = "/etc/cni/net.d/manifold.d/agent.json"

// nodeFlags tell how to reach nodes: through the API server, or locally.
type nodeFlags struct {
	kube   *genericclioptions.ConfigFlags
	local  bool
	config string
	agents string
}

func (n *nodeFlags) bind(c *cobra.Command) {
	c.Flags().BoolVar(&n.local, "local", false, "read the node that this program runs on, without the API server; needs root")
	c.Flags().StringVar(&n.config, "agent-config", defaultConfig, "with --local: the agent's configuration `file`, manifold.d/agent.json in the runtime's directory of network configurations")
	c.Flags().StringVar(&n.agents, "agent-namespace", "kube-system", "`namespace` of the agents' pods")
}

// nodes returns the nodes that the flags choose.
func (n *nodeFlags) nodes() (inspect.Nodes, error) {
	if n.local {
		return inspect.Local{Config: n.config}, nil
	}
	return n.remote()
}

// remote returns the nodes of the cluster.
func (n *nodeFlags) remote() (*inspect.Remote, error) {
	cfg, err := n.kube.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w; on a node without a kubeconfig, use --local", err)
	}
	return inspect.NewRemote(cfg, n.agents)
}

// namespace returns the namespace of the flag, else of the kubeconfig's context.
func (n *nodeFlags) namespace() (string, error) {
	name, _, err := n.kube.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", fmt.Errorf("namespace: %w", err)
	}
	return name, nil
}

// views returns the views of the named nodes, or of all nodes if there are no names.
func (n *nodeFlags) views(ctx context.Context, names []string) (*views, error) {
	nodes, err := n.nodes()
	if err != nil {
		return nil, err
	}
	found, err := nodes.Views(ctx, names)
	return &views{Nodes: found}, err
}

// views are what status and devices print as JSON and YAML: for each node, what was asked
// for.
type views struct {
	Nodes []*nodeview.View `json:"nodes"`
}

// problems prints a warning for everything that could not be read, and reports whether
// there was anything.
func (v *views) problems(w io.Writer) bool {
	unread := v.unread()
	for _, p := range unread {
		_ = printLine(w, "warning: "+p) // there is nowhere else to report it
	}
	return len(unread) > 0
}

// unread returns what could not be read, each with its node.
func (v *views) unread() (all []string) {
	for _, n := range v.Nodes {
		for _, p := range n.Problems {
			all = append(all, "node "+n.Node+": "+p)
		}
	}
	return all
}

// asRead returns a sentence that says that there is nothing, qualified if something could
// not be read.
func asRead(sentence string, everything bool) string {
	if everything {
		return sentence
	}
	return sentence + ", as far as could be read: see the warnings"
}

// foundIf returns errFound if something is wrong.
func foundIf(wrong bool) error {
	if wrong {
		return errFound
	}
	return nil
}

// nothing returns the sentence for an answer without lines, such as "nothing is attached".
func (v *views) nothing(sentence string) string {
	where := fmt.Sprintf("on %d nodes", len(v.Nodes))
	if len(v.Nodes) == 1 {
		where = "on node " + v.Nodes[0].Node
	}
	return asRead(sentence+" "+where, len(v.unread()) == 0)
}
