package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

const rootLong = `Shows and checks the networks of pods and the devices that they use.

Exit status: 0 if all is well, 1 if the command found a problem, 2 if the command
itself failed. On a terminal, verdicts are colored unless NO_COLOR is set.`

// needs states the permissions for the commands that ask nodes.
const needs = "Nodes are asked through the API server, which needs " + needsRest

// needsRest is needs after its verb.
const needsRest = `permission in the agents'
namespace to list pods, get pods/proxy, and create serviceaccounts/token for the
agents' viewer account. Each token is valid for one agent and ten minutes.`

// usage follows kubectl's: the flags common to all commands are in "kubectl manifold
// options".
const usage = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} [command]{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Available Commands:{{range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{if and .HasParent .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}

Use "kubectl manifold options" for the flags of all commands.
`

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
	root.SetUsageTemplate(usage)
	kube := genericclioptions.NewConfigFlags(true)
	kube.CacheDir = nil // the program runs no discovery
	kube.AddFlags(root.PersistentFlags())
	root.AddCommand(newStatus(streams, kube), newDevices(streams, kube), newExplain(streams, kube), newLint(streams, kube),
		newDoctor(streams, kube), newOrphans(streams, kube), newRepair(streams, kube), newBundle(streams, kube), newOptions(streams), newReference(streams))
	return root
}

// newOptions returns the command that prints the flags of every command.
func newOptions(streams genericiooptions.IOStreams) *cobra.Command {
	return &cobra.Command{
		Use: "options", Short: "Print the flags of all commands", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(streams.Out, c.Root().PersistentFlags().FlagUsages())
			return err
		},
	}
}
