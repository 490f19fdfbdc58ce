package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

const defaultConfig = "/etc/cni/net.d/manifold.d/agent.json"

// nodeFlags say which node is looked at.
type nodeFlags struct {
	config string
}

func (n *nodeFlags) bind(c *cobra.Command) {
	c.Flags().StringVar(&n.config, "agent-config", defaultConfig, "the agent's configuration `file` on this node")
}

// views are what status and devices print as JSON and YAML: of each node what was
// asked for.
type views struct {
	Nodes []*nodeview.View `json:"nodes"`
}

// views returns the nodes' views.
func (n *nodeFlags) views(ctx context.Context) (*views, error) {
	v, err := inspect.Local{Config: n.config}.View(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at this node: %w", err)
	}
	return &views{Nodes: []*nodeview.View{v}}, nil
}

// explain explains a pod of the node.
func (n *nodeFlags) explain(ctx context.Context, namespace, name string) (*nodeview.Explanation, error) {
	e, err := inspect.Local{Config: n.config}.Explain(ctx, namespace, name)
	if err != nil {
		return nil, fmt.Errorf("explain pod %s/%s: %w", namespace, name, err)
	}
	return e, nil
}

// problems tells people what could not be read, and reports whether there was
// something.
func (v *views) problems(w io.Writer) bool {
	any := false
	for _, n := range v.Nodes {
		for _, p := range n.Problems {
			any = true
			_ = printers.WriteEscaped(w, "warning: node "+n.Node+": "+p+"\n") // there is nowhere else to say it
		}
	}
	return any
}

// foundIf returns errFound where something is wrong.
func foundIf(wrong bool) error {
	if wrong {
		return errFound
	}
	return nil
}
