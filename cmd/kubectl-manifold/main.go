// Command kubectl-manifold is the kubectl plugin "kubectl manifold": what a node
// has attached and on which device, why a pod gets what it gets, what is broken,
// and which mistakes a manifest has.
//
// It reads the node that it runs on: the journals, the CNI configuration, sysfs,
// and the agent's socket. The command lint needs no node. Package inspect has
// the answers; this program has their flags and their print.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// release is set by the build.
var release = "unreleased"

// Exit statuses.
const (
	exitFound  = 1 // something is wrong with what was looked at
	exitFailed = 2 // the command could not look: flags, files, permissions
)

// errFound says that what was looked at is wrong; it has been printed.
var errFound = errors.New("problems were found")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	if os.Getenv("NO_COLOR") != "" { //nolint:forbidigo // where the program starts
		streams.Out = struct{ io.Writer }{os.Stdout} // no terminal that a table would know
	}
	err := newRoot(streams).ExecuteContext(ctx)
	switch {
	case errors.Is(err, errFound):
		os.Exit(exitFound)
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(exitFailed)
	}
}
