package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// output is the flag -o.
type output struct {
	format  string
	allowed []string
}

// Formats of output.
const (
	formatText = ""
	formatWide = "wide"
	formatJSON = "json"
	formatYAML = "yaml"
)

// bind adds the flag to a command; wide means that the command has a wide form.
func (o *output) bind(c *cobra.Command, wide bool) {
	o.allowed = []string{formatJSON, formatYAML}
	if wide {
		o.allowed = append([]string{formatWide}, o.allowed...)
	}
	c.Flags().StringVarP(&o.format, "output", "o", "", "output `format`: "+strings.Join(o.allowed, ", ")+"; by default text for people")
	complete := func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return o.allowed, cobra.ShellCompDirectiveNoFileComp
	}
	// This fails only for flags that do not exist or were registered before.
	if err := c.RegisterFlagCompletionFunc("output", complete); err != nil {
		c.PrintErrln(err)
	}
}

// print writes v as JSON or YAML if requested, and otherwise calls text.
func (o *output) print(w io.Writer, v any, text func(w io.Writer, wide bool) error) error {
	switch {
	case o.format == formatText || o.format == formatWide && slices.Contains(o.allowed, formatWide):
		return text(w, o.format == formatWide)
	case o.format == formatJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		return nil
	case o.format == formatYAML:
		raw, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(raw)
		}
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		return nil
	}
	return o.check()
}

// check refuses an unknown format, before any work.
func (o *output) check() error {
	if o.format == formatText || slices.Contains(o.allowed, o.format) {
		return nil
	}
	return fmt.Errorf("--output=%q: allowed are %s", o.format, strings.Join(o.allowed, ", "))
}
