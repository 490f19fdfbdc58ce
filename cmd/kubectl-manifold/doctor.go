package main

import (
	"context"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/nodeview"
)

const doctorLong = `Checks everything that nodes need to give pods their networks: configuration files
and their order, the default network and others that every pod gets, programs, the
agent, the kubelet's sockets and checkpoint, the API server and certificates, the
state directory, virtual functions and sandboxes, and whether admission answers. For
each problem it tells what to do. It changes nothing.

` + needs + `
To check admission it also needs permission to list validatingwebhookconfigurations.
If an agent is dead, run doctor on its node, as root, with --local.`

// diagnoses are what doctor prints as JSON and YAML.
type diagnoses struct {
	Nodes []*nodeview.Diagnosis `json:"nodes"` // the entry for the cluster has no node
}

func newDoctor(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	n := nodeFlags{kube: kube}
	var out output
	c := &cobra.Command{
		Use: "doctor [NODE...]", Short: "Tell what is broken, and what to do", Long: doctorLong,
		Example: "  # one node\n  kubectl manifold doctor worker-1\n\n  # all nodes\n  kubectl manifold doctor\n\n" +
			"  # on the node itself\n  kubectl manifold doctor --local",
		RunE: func(c *cobra.Command, args []string) error {
			return doctor(c.Context(), streams, &n, &out, args)
		},
	}
	n.bind(c)
	c.ValidArgsFunction = n.completeNodes
	out.bind(c, false)
	return c
}

func doctor(ctx context.Context, streams genericiooptions.IOStreams, n *nodeFlags, o *output, args []string) error {
	if err := o.check(); err != nil {
		return err
	}
	nodes, err := n.nodes()
	if err != nil {
		return err
	}
	found := diagnoses{}
	if found.Nodes, err = nodes.Doctor(ctx, args); err != nil {
		return err
	}
	if err := o.print(streams.Out, found, func(w io.Writer, _ bool) error { return found.text(w) }); err != nil {
		return err
	}
	return foundIf(slices.ContainsFunc(found.Nodes, (*nodeview.Diagnosis).Failed))
}

// text writes a line for each check.
func (d diagnoses) text(w io.Writer) error {
	colours := map[string]string{nodeview.CheckOK: green, nodeview.CheckFailed: red}
	t := table{header: []string{"NODE", "CHECK", "STATE", "FOUND"}, empty: "no node was checked"}
	for _, one := range d.Nodes {
		for _, c := range one.Checks {
			found := c.Text
			if c.Fix != "" {
				found += "; what to do: " + c.Fix
			}
			t.add(colours[c.State], one.Node, c.Name, c.State, found)
		}
	}
	return t.write(w)
}
