package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
)

const repairLong = `Undoes what was left behind on virtual functions. A stranded or quarantined function
gets the state in which its sandbox found it; settings that are left over are reset.
Functions that a living pod has, and orphaned ones, are only reported. PFs that the
agent's configuration excludes are left alone. With --dry-run it only tells what it
would do.

Repairs are done on the node itself, as root, with --local. Users who may see a node
through the API server can change nothing there, and the agent may not change an
interface unless its configuration lets it repair by itself. Each repair is recorded in
repairs.log in the journals' directory before it is done.

With --dry-run and without --local it needs ` + needsRest

// repairOptions are the flags of repair.
type repairOptions struct {
	nodes nodeFlags
	dry   bool
	out   output
}

func newRepair(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	o := &repairOptions{nodes: nodeFlags{kube: kube}}
	c := &cobra.Command{
		Use: "repair [NODE...]", Short: "Undo what was left behind on virtual functions", Long: repairLong,
		Example: "  # what would be done, on all nodes\n  kubectl manifold repair --dry-run\n\n  # do it, on the node itself\n  kubectl manifold repair --local",
		RunE:    func(c *cobra.Command, args []string) error { return o.run(c.Context(), streams, args) },
	}
	o.nodes.bind(c)
	c.ValidArgsFunction = o.nodes.completeNodes
	c.Flags().BoolVar(&o.dry, "dry-run", false, "tell what would be done, and do nothing")
	o.out.bind(c, false)
	return c
}

// repairs are what repair prints as JSON and YAML.
type repairs struct {
	DryRun  bool             `json:"dryRun"`
	Repairs []inspect.Repair `json:"repairs"`
	partial bool             // not everything could be read
}

func (o *repairOptions) run(ctx context.Context, streams genericiooptions.IOStreams, args []string) error {
	if err := o.out.check(); err != nil {
		return err
	}
	done, problem := o.repair(ctx, streams.ErrOut, args)
	if problem != nil && done == nil {
		return fmt.Errorf("repair: %w", problem)
	}
	found := repairs{o.dry, done, problem != nil}
	if err := o.out.print(streams.Out, found, func(w io.Writer, _ bool) error { return found.text(w) }); err != nil {
		return err
	}
	left := false
	for _, r := range done {
		left = left || r.Left
	}
	if problem != nil {
		return errors.Join(errors.New("not everything could be checked"), problem)
	}
	return foundIf(left)
}

// repair repairs this node, or returns what would be done on it or on others. The error
// is what could not be examined; nil repairs mean that nothing was examined at all.
func (o *repairOptions) repair(ctx context.Context, warnings io.Writer, args []string) ([]inspect.Repair, error) {
	switch {
	case o.nodes.local:
		return inspect.Local{Config: o.nodes.config}.Repair(ctx, o.dry, args...)
	case !o.dry:
		return nil, errors.New("nothing is repaired through the API server: run the command on the node, as root, with --local; here only --dry-run works, which tells what would be done")
	}
	all, err := o.nodes.views(ctx, args)
	if err != nil {
		return nil, err
	}
	out := inspect.Proposed(all.Nodes)
	if all.problems(warnings) {
		err = errors.New("see the warnings")
	}
	return out, err
}

// text writes a line for each finding.
func (r repairs) text(w io.Writer) error {
	title := "DONE"
	if r.DryRun {
		title = "WOULD DO"
	}
	t := table{header: []string{"NODE", "DEVICE", "POD", "KIND", "FOUND", title}, empty: asRead("there is nothing to repair", !r.partial)}
	for _, one := range r.Repairs {
		t.add(verdict(!one.Left), one.Node, one.Device, one.Pod, string(one.Kind), one.Text, one.Action)
	}
	return t.write(w)
}
