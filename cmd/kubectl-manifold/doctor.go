package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
)

const doctorLong = `Looks at what this node needs so that pods get their networks: configuration files
and their order, the default network, programs, the agent, the kubelet's sockets and
checkpoint, the API server and certificates, the state directory, virtual functions,
sandboxes. Each with what to do.

It runs on the node, as root, and changes nothing.`

// localFlags are those of commands that work on the node itself.
type localFlags struct{ config string }

func (l *localFlags) bind(c *cobra.Command) {
	c.Flags().StringVar(&l.config, "agent-config", defaultConfig, "the agent's configuration `file`")
}

// checks are what doctor prints as JSON and YAML.
type checks struct {
	Checks []inspect.Check `json:"checks"`
}

func newDoctor(streams genericiooptions.IOStreams) *cobra.Command {
	var local localFlags
	var out output
	c := &cobra.Command{
		Use: "doctor", Short: "Say what is broken on this node, and what to do", Long: doctorLong, Args: cobra.NoArgs,
		Example: "  # on the node\n  kubectl manifold doctor",
		RunE: func(c *cobra.Command, _ []string) error {
			return doctor(c.Context(), streams, local, &out)
		},
	}
	local.bind(c)
	out.bind(c, false)
	return c
}

func doctor(ctx context.Context, streams genericiooptions.IOStreams, local localFlags, o *output) error {
	if err := o.check(); err != nil {
		return err
	}
	found := checks{inspect.Local{Config: local.config}.Doctor(ctx)}
	if err := o.print(streams.Out, found, func(w io.Writer, _ bool) error { return found.text(w) }); err != nil {
		return err
	}
	for _, c := range found.Checks {
		if c.State == inspect.CheckFailed {
			return errFound
		}
	}
	return nil
}

// text writes a line for each check.
func (c checks) text(w io.Writer) error {
	colours := map[string]string{inspect.CheckOK: green, inspect.CheckFailed: red}
	t := table{header: []string{"CHECK", "STATE", "FOUND"}}
	for _, one := range c.Checks {
		found := one.Text
		if one.Fix != "" {
			found += "; what to do: " + one.Fix
		}
		t.add(colours[one.State], one.Name, one.State, found)
	}
	return t.write(w)
}
