package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// writeManuals writes a manual page for each command into dir.
func writeManuals(dir string, c *cobra.Command) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("manual pages: %w", err)
	}
	for _, one := range documented(c) {
		if err := os.WriteFile(filepath.Join(dir, manualName(one)+".1"), []byte(manual(one)), 0o644); err != nil {
			return fmt.Errorf("manual pages: %w", err)
		}
	}
	return nil
}

// documented returns a command and those of its subcommands that have a page.
func documented(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
			all = append(all, documented(sub)...)
		}
	}
	return all
}

// manualName returns the name of a page, for example kubectl-manifold-status.
func manualName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manual returns the page of a command in man(7) markup.
func manual(c *cobra.Command) string {
	var b strings.Builder
	section := func(title, text string, filled bool) {
		text = strings.TrimRight(text, "\n")
		if text == "" {
			return
		}
		fmt.Fprintf(&b, ".SH %s\n", title)
		if !filled {
			b.WriteString(".nf\n")
		}
		for line := range strings.Lines(roff(text) + "\n") {
			if filled && strings.TrimSpace(line) == "" {
				line = ".PP\n"
			}
			b.WriteString(line)
		}
		if !filled {
			b.WriteString(".fi\n")
		}
	}
	c.InitDefaultHelpFlag()
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"Manifold\" \"Manifold\"\n", strings.ToUpper(roff(manualName(c))))
	section("NAME", manualName(c)+" - "+c.Short, true)
	section("SYNOPSIS", c.UseLine(), true)
	section("DESCRIPTION", c.Long, true)
	section("EXAMPLES", c.Example, false)
	section("OPTIONS", c.LocalFlags().FlagUsages(), false)
	var also []string
	for _, other := range documented(c.Root()) {
		if other != c {
			also = append(also, manualName(other)+"(1)")
		}
	}
	section("SEE ALSO", strings.Join(also, ", "), true)
	return b.String()
}

// roff escapes what man(7) would take for markup.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			b.WriteString(`\&`)
		}
		b.WriteString(line)
	}
	return b.String()
}
