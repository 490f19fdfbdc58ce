package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
)

const bundleLong = `Writes an archive that helps to find out what is wrong on a node: what is attached,
what doctor finds, configurations, the plans and steps of sandboxes, and the end of the
plugin's log. Tokens, passwords, keys, certificates and kubeconfigs are left out or
replaced. Names of pods, addresses and devices are unchanged: look through the archive
before you pass it on.

` + needs + `
With --local it writes the archive of this node, without the agent.`

func newBundle(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	n := nodeFlags{kube: kube}
	var to string
	c := &cobra.Command{
		Use: "support-bundle (NODE | --local)", Short: "Write an archive about a node, without its secrets", Long: bundleLong, Args: cobra.MaximumNArgs(1),
		Example: "  # into a file named after node and time\n  kubectl manifold support-bundle worker-1\n\n" +
			"  # on the node itself; look through it\n  kubectl manifold support-bundle --local --to - | tar -tz",
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == n.local {
				return errors.New("give either the name of a node or --local")
			}
			return writeBundle(c.Context(), streams, &n, strings.Join(args, ""), to)
		},
	}
	n.bind(c)
	c.ValidArgsFunction = n.completeNode
	c.Flags().StringVar(&to, "to", "", "`file` to write, or - for standard output; by default manifold-NODE-TIME.tar.gz")
	return c
}

// writeBundle writes the archive of a node; an empty node means this one.
func writeBundle(ctx context.Context, streams genericiooptions.IOStreams, n *nodeFlags, node, to string) error {
	if to == "-" {
		return n.bundle(ctx, node, streams.Out)
	}
	if to == "" {
		to = "manifold-" + cmp.Or(node, "local") + "-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	if err := errors.Join(n.bundle(ctx, node, f), f.Close()); err != nil {
		return fmt.Errorf("support bundle: %w", errors.Join(err, os.Remove(to)))
	}
	fmt.Fprintln(streams.Out, to)
	return nil
}

// bundle writes the archive to w.
func (n *nodeFlags) bundle(ctx context.Context, node string, w io.Writer) error {
	if n.local {
		return inspect.Local{Config: n.config}.Bundle(ctx, release, w)
	}
	nodes, err := n.remote()
	if err != nil {
		return err
	}
	return nodes.Bundle(ctx, node, w)
}
