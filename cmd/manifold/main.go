// Command manifold is the CNI plugin that the container runtime executes. It asks the
// node's agent for a plan, journals the plan, runs the delegates, verifies their
// interfaces, and prints the default network's result.
//
// It has no rules of its own: package netconf reads the runtime's input, package plan
// reaches the agent, and package attach does the work. It links no Kubernetes client, no
// gRPC and no PCI database, so that it starts in about a millisecond; a test compares its
// list of dependencies with a golden file.
package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	_ "github.com/manifold-cni/manifold/internal/alone"
	"github.com/manifold-cni/manifold/internal/attach"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
)

func main() {
	// The process does one thing after another for a few milliseconds and holds a few
	// megabytes. Collecting garbage, with threads to share the work, costs more than it
	// saves. The limit bounds what a hostile plan can take.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	if status, nested := answerNested(); nested {
		os.Exit(status)
	}
	letWatchSleep()
	// No signal is handled. Runtimes that give up send SIGKILL, which is what the journal
	// is for; handling other signals would cost every verb a thread.
	os.Exit(run(context.Background(), os.Stdout, os.Stderr))
}

// nestedEnv marks every process that runs below this program.
const nestedEnv = "MANIFOLD_NESTED"

// answerNested refuses to run as a delegate's delegate, and returns the exit status. A
// definition that names this program as an IPAM plugin, or as anything else that its
// plugins run, would choose this program's configuration, and with it a program that runs
// as root. Whatever reads configurations cannot know all the ways to name a program; the
// program itself can tell. DEL and GC succeed, since there is nothing attached to
// release: a failing DEL would make the pod of such a definition undeletable.
func answerNested() (status int, nested bool) {
	if _, nested = os.LookupEnv(nestedEnv); !nested { //nolint:forbidigo // where the program starts
		return 1, os.Setenv(nestedEnv, "1") != nil
	}
	if verb := os.Getenv("CNI_COMMAND"); verb == "DEL" || verb == "GC" { //nolint:forbidigo // as above
		return 0, true
	}
	err := cnierr.ToCNI(cnierr.New("start", cnierr.InvalidDefinition, "a delegate called manifold, which had called the delegate").
		WithFix("name another plugin in the network's configuration"))
	_ = err.Print() // the exit status is set whether this prints or not
	return 1, true
}

// run serves one call and returns the exit status. Only the result or the error object is
// written to stdout.
func run(ctx context.Context, stdout, stderr io.Writer) int {
	funcs := skel.CNIFuncs{
		Add: func(a *skel.CmdArgs) error {
			return serve("ADD", a, stderr, func(e *attach.Engine, inv *netconf.Invocation) error {
				result, err := e.Add(ctx, inv)
				if err != nil {
					return err
				}
				return result.PrintTo(stdout)
			})
		},
		Del: func(a *skel.CmdArgs) error {
			return serve("DEL", a, stderr, func(e *attach.Engine, inv *netconf.Invocation) error { return e.Del(ctx, inv) })
		},
		Check: func(a *skel.CmdArgs) error {
			return serve("CHECK", a, stderr, func(e *attach.Engine, inv *netconf.Invocation) error { return e.Check(ctx, inv) })
		},
		GC: func(a *skel.CmdArgs) error {
			return serve("GC", a, stderr, func(e *attach.Engine, inv *netconf.Invocation) error { return e.GC(ctx, inv) })
		},
		Status: func(a *skel.CmdArgs) error {
			return serve("STATUS", a, stderr, func(e *attach.Engine, inv *netconf.Invocation) error { return e.Status(ctx, inv) })
		},
	}
	err := skel.PluginMainFuncsWithError(funcs, version.All, "")
	if err == nil {
		return 0
	}
	// The runtime may have closed the pipe; the exit status still tells.
	_ = err.Print()
	return 1
}

// serve decodes the call, does the work, logs it, and maps its error to a CNI error
// object.
func serve(verb string, a *skel.CmdArgs, stderr io.Writer, work func(*attach.Engine, *netconf.Invocation) error) error {
	parse := netconf.Parse
	if verb == "DEL" {
		parse = netconf.ParseLeniently
	}
	inv, err := parse(a)
	if err != nil {
		return cnierr.ToCNI(err)
	}
	log, done := newLog(&inv.Conf, stderr)
	defer done()
	if verb == "DEL" { // an ADD's warnings are in its plan
		for _, w := range inv.Warnings {
			log.Warn(w)
		}
	}
	e, end := engine(inv, log, stderr)
	e.Times = attach.NewTimes(verb)
	inv.ID = e.Times.ID
	e.Log = log.With("verb", verb, "request", inv.ID, "sandbox", a.ContainerID, "pod", inv.Pod.String(), "uid", inv.Pod.UID)
	log = e.Log
	began := time.Now()
	err = work(e, inv)
	e.Done(err)
	took := time.Since(began).Round(time.Microsecond)
	if err := end(); err != nil {
		log.Warn("the agent's program failed", "error", err)
	}
	if err != nil {
		log.Error("failed", "took", took, "error", err)
		return cnierr.ToCNI(err)
	}
	log.Info("done", "took", took, "cpu", ownCPU{}, "parts", e.Times)
	return nil
}

// ownCPU is the processor time that this process, without its delegates, has used by the
// time it is logged.
type ownCPU struct{}

// LogValue implements [slog.LogValuer].
func (ownCPU) LogValue() slog.Value {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return slog.StringValue(err.Error())
	}
	return slog.DurationValue(time.Duration(u.Utime.Nano() + u.Stime.Nano()))
}

// engine returns the engine for the configuration. end stops the program that it ran to
// plan, if any.
func engine(inv *netconf.Invocation, log *slog.Logger, stderr io.Writer) (e *attach.Engine, end func() error) {
	conf := &inv.Conf
	program := &plan.Command{Path: conf.AgentProgram, Args: []string{"plan", "--config", conf.AgentConfig}}
	return &attach.Engine{
		Planner: &plan.Fallback{First: plan.Client{Socket: conf.AgentSocket}, Then: program, Queue: conf.AgentProgram},
		Journal: journal.Dir{Path: conf.CNIDir},
		Log:     log,
		Stderr:  stderr,
	}, program.Close
}
