package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
)

const bundleLong = `Writes one archive with what helps to find what is wrong on this node: what is
attached, what doctor finds, configurations, the sandboxes' plans and steps, the end
of the plugin's log. Tokens, passwords, keys, certificates and kubeconfigs are left
out or replaced; names of pods, addresses and devices are as they are. Look through
it before you hand it on.

It runs on the node, as root.`

func newBundle(streams genericiooptions.IOStreams) *cobra.Command {
	var local localFlags
	var to string
	c := &cobra.Command{
		Use: "support-bundle", Short: "Write an archive about this node, secrets left out", Long: bundleLong, Args: cobra.NoArgs,
		Example: "  # into a file named after the time\n  kubectl manifold support-bundle\n\n" +
			"  # look through it\n  kubectl manifold support-bundle --to - | tar -tz",
		RunE: func(c *cobra.Command, _ []string) error { return writeBundle(c.Context(), streams, local, to) },
	}
	local.bind(c)
	c.Flags().StringVar(&to, "to", "", "`file` to write, or - for standard output; by default manifold-TIME.tar.gz")
	return c
}

func writeBundle(ctx context.Context, streams genericiooptions.IOStreams, local localFlags, to string) (err error) {
	l := inspect.Local{Config: local.config}
	if to == "-" {
		return l.Bundle(ctx, release, streams.Out)
	}
	if to == "" {
		to = "manifold-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	if err := errors.Join(l.Bundle(ctx, release, io.Writer(f)), f.Close()); err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	fmt.Fprintln(streams.Out, to)
	return nil
}
