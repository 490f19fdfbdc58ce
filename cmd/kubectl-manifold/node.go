package main

import (
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
	c.Flags().StringVar(&n.config, "agent-config", defaultConfig, "with --local: the agent's configuration `file`")
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

// views are what status and devices print as JSON and YAML: for each node, what was asked
// for.
type views struct {
	Nodes []*nodeview.View `json:"nodes"`
}

// problems prints a warning for everything that could not be read, and reports whether
// there was anything.
func (v *views) problems(w io.Writer) bool {
	some := false
	for _, n := range v.Nodes {
		for _, p := range n.Problems {
			some = true
			_ = printLine(w, "warning: node "+n.Node+": "+p) // there is nowhere else to report it
		}
	}
	return some
}

// foundIf returns errFound if something is wrong.
func foundIf(wrong bool) error {
	if wrong {
		return errFound
	}
	return nil
}

// where names the nodes on which there is nothing to show.
func (v *views) where() string {
	if len(v.Nodes) == 1 {
		return "on node " + v.Nodes[0].Node
	}
	return fmt.Sprintf("on %d nodes", len(v.Nodes))
}
