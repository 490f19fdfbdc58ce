package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

const referenceHead = "# kubectl manifold\n\nGenerated from the commands by `go test ./test/kubectl -update`. Put the program `kubectl-manifold` into a directory of `PATH`; kubectl finds it by its name. `make krew` packs it for krew. For shell completion of commands, pods and nodes, put `cmd/kubectl-manifold/kubectl_complete-manifold` next to it. Manual pages are in [man](man); what the commands print is in [by example](kubectl-by-example.md).\n\n"

// newReference returns the hidden command that prints the reference page and writes the
// manual pages.
func newReference(streams genericiooptions.IOStreams) *cobra.Command {
	manuals := ""
	c := &cobra.Command{
		Use: "reference", Short: "Print the reference of all commands as Markdown", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if manuals != "" {
				return writeManuals(manuals, c.Root())
			}
			_, err := io.WriteString(streams.Out, referenceHead+reference(c.Root()))
			return err
		},
	}
	c.Flags().StringVar(&manuals, "manuals", "", "write manual pages into this `directory` instead")
	return c
}

// picture returns the image of a command's output on a terminal; help has no image.
func picture(c *cobra.Command) string {
	if !c.HasParent() || c.Name() == "options" {
		return ""
	}
	return fmt.Sprintf("\n![%s on a terminal](kubectl/%s.svg)\n", c.CommandPath(), c.Name())
}

// reference returns the chapters for a command and its subcommands: the help of each.
func reference(root *cobra.Command) string {
	var chapters []string
	for _, c := range documented(root) {
		text := c.Long
		if text == "" {
			text = c.Short
		}
		c.InitDefaultHelpFlag()
		chapters = append(chapters, fmt.Sprintf("## %s\n\n%s\n\n```\n%s```\n", c.CommandPath(), text, c.UsageString())+picture(c))
	}
	return strings.Join(chapters, "\n")
}
