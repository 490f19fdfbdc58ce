// Command kubectl-manifold is the kubectl plugin "kubectl manifold". It shows what nodes
// have attached and on which device, why a pod gets what it gets, what is broken, and
// which mistakes a manifest has.
//
// It asks the agents of nodes through the API server or, with --local, reads the node
// that it runs on: the agent's socket, the journals, the CNI configuration and sysfs. The
// command lint needs no node. Package inspect has the answers; this program has their
// flags and prints them.
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
	exitFound  = 1 // what was examined has a problem
	exitFailed = 2 // the command could not examine anything: flags, files, permissions
)

// errFound means that what was examined has problems, which are already printed.
var errFound = errors.New("problems were found")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	if os.Getenv("NO_COLOR") != "" { //nolint:forbidigo // where the program starts
		streams.Out = struct{ io.Writer }{os.Stdout} // not an *os.File, so that tables see no terminal
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
