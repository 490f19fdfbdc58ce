package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

const referenceHead = "# kubectl manifold\n\nMade from the commands by `go test ./test/kubectl -update`. Put the program `kubectl-manifold` into a directory of `PATH`; kubectl finds it by its name.\n\n"

// newReference returns the hidden command that prints the reference page.
func newReference(streams genericiooptions.IOStreams) *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "Print the reference of all commands as Markdown", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(streams.Out, referenceHead+reference(c.Root()))
			return err
		},
	}
}

// reference returns the chapters of a command and of those below it, each the
// command's own help.
func reference(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short
	}
	c.InitDefaultHelpFlag()
	fmt.Fprintf(&b, "%s\n\n```\n%s```\n", text, c.UsageString())
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
			b.WriteString("\n" + reference(sub))
		}
	}
	return b.String()
}
