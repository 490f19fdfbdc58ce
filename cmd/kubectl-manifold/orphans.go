package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
)

const orphansLong = `Shows what was left behind: virtual functions that are stranded, vanished, replaced,
drifted, unreleased, orphaned, left over or in quarantine, and sandboxes that died
without a DEL or whose DEL has failed.

` + needs

// orphans are what orphans prints as JSON and YAML.
type orphans struct {
	Orphans  []inspect.Orphan `json:"orphans"`
	Problems []string         `json:"problems,omitempty"` // what could not be read, with its node
}

func newOrphans(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	n := nodeFlags{kube: kube}
	var out output
	c := &cobra.Command{
		Use: "orphans [NODE...]", Short: "Show what was left behind", Long: orphansLong,
		Example: "  # of all nodes\n  kubectl manifold orphans\n\n  # on the node itself\n  kubectl manifold orphans --local",
		RunE: func(c *cobra.Command, args []string) error {
			return listOrphans(c.Context(), streams, &n, &out, args)
		},
	}
	n.bind(c)
	c.ValidArgsFunction = n.completeNodes
	out.bind(c, false)
	return c
}

func listOrphans(ctx context.Context, streams genericiooptions.IOStreams, n *nodeFlags, o *output, args []string) error {
	if err := o.check(); err != nil {
		return err
	}
	all, err := n.views(ctx, args)
	if err != nil {
		return err
	}
	wrong := all.problems(streams.ErrOut)
	found := orphans{inspect.Orphans(all.Nodes), all.unread()}
	if err := o.print(streams.Out, found, func(w io.Writer, _ bool) error { return found.text(w) }); err != nil {
		return err
	}
	return foundIf(wrong || len(found.Orphans) > 0)
}

// text writes a line for each orphan.
func (o orphans) text(w io.Writer) error {
	t := table{header: []string{"NODE", "WHAT", "POD", "NETWORK", "KIND", "FOUND"}, empty: asRead("nothing was left behind", len(o.Problems) == 0)}
	for _, one := range o.Orphans {
		t.add(red, one.Node, one.What, one.Pod, one.Network, one.Kind, one.Text)
	}
	return t.write(w)
}
