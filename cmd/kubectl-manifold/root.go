package main

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

const rootLong = `Shows and checks the networks of pods and the devices that they stand on.

Exit status: 0 when all is well, 1 when the command found something wrong, 2 when
it could not look.`

// newRoot returns the command tree.
func newRoot(streams genericiooptions.IOStreams) *cobra.Command {
	root := &cobra.Command{
		Use: "kubectl-manifold", Short: "Networks of pods and their devices", Long: rootLong,
		Version: release, SilenceErrors: true, SilenceUsage: true,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl manifold"},
		Args:        cobra.NoArgs,
		RunE:        func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	root.AddCommand(newStatus(streams), newDevices(streams), newExplain(streams), newLint(streams), newReference(streams))
	return root
}
