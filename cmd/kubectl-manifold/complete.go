package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/manifold-cni/manifold/internal/inspect"
)

// completionTime bounds how long a shell waits for names.
const completionTime = 3 * time.Second

// completePod completes the only pod argument of a command, in the chosen namespace.
func (n *nodeFlags) completePod(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	namespace, err := n.namespace()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return n.complete(c, func(ctx context.Context, r *inspect.Remote) ([]string, error) { return r.PodNames(ctx, namespace) })
}

// completeNodes completes the names of nodes that have an agent.
func (n *nodeFlags) completeNodes(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return n.complete(c, func(ctx context.Context, r *inspect.Remote) ([]string, error) { return r.NodeNames(ctx) })
}

// completeNode completes the only node argument of a command.
func (n *nodeFlags) completeNode(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return n.completeNodes(c, args, typed)
}

// complete asks the API server, with the flags that are on the command line so far. On an
// error the shell gets no names: there is nowhere to report it.
func (n *nodeFlags) complete(c *cobra.Command, names func(context.Context, *inspect.Remote) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionTime)
	defer cancel()
	remote, err := n.remote()
	if err != nil || n.local {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := names(ctx, remote)
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}
