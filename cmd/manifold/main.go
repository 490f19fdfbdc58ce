// Command manifold is the CNI plugin that the container runtime executes: it
// asks the node's agent for a plan, journals it, runs the delegates, verifies
// their interfaces, and prints the default network's result.
//
// It holds no rule of its own: package netconf reads what the runtime says,
// package plan reaches the agent, package attach does the work. It links no
// Kubernetes client, no gRPC and no PCI database, so that it starts in about a
// millisecond; a test holds its list of dependencies against a golden file.
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
	// The process does one thing after another for some milliseconds, and holds a
	// few megabytes: collecting garbage, as threads to share the work, costs more than
	// it gives. The limit keeps a hostile plan bounded.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	if status, nested := answerNested(); nested {
		os.Exit(status)
	}
	letWatchSleep()
	// No signal is handled. Runtimes that give up send SIGKILL, for which the
	// journal is there; to be ready for others costs every verb a thread.
	os.Exit(run(context.Background(), os.Stdout, os.Stderr))
}

// nestedEnv marks everything that runs below this program.
const nestedEnv = "MANIFOLD_NESTED"

// answerNested refuses to be a delegate's delegate, and returns the exit status. A
// definition that names this program as an IPAM plugin, or whatever else its
// plugins run, would choose its configuration, and with it a program that runs as
// root. What reads configurations cannot know all the ways to name a program; this
// can. What was never attached is released already: a DEL that failed would make
// the pod of such a definition undeletable.
func answerNested() (status int, nested bool) {
	if _, nested = os.LookupEnv(nestedEnv); !nested { //nolint:forbidigo // where the program starts
		return 1, os.Setenv(nestedEnv, "1") != nil
	}
	if verb := os.Getenv("CNI_COMMAND"); verb == "DEL" || verb == "GC" { //nolint:forbidigo // as above
		return 0, true
	}
	err := cnierr.ToCNI(cnierr.New("start", cnierr.InvalidDefinition, "a delegate calls manifold, which called the delegate").
		WithFix("name another plugin in the network's configuration"))
	_ = err.Print() // the exit status remains
	return 1, true
}

// run serves one call and returns the exit status. Nothing but the result or the
// error object reaches stdout.
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
	// A runtime that closed the pipe is not listening; the exit status remains.
	_ = err.Print()
	return 1
}

// serve decodes the call, does it, logs it, and maps its error to a CNI error
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
	if verb == "DEL" { // an ADD's are in its plan
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
		log.Warn("the agent's program", "error", err)
	}
	if err != nil {
		log.Error("failed", "took", took, "error", err)
		return cnierr.ToCNI(err)
	}
	log.Info("done", "took", took, "cpu", ownCPU{}, "parts", e.Times)
	return nil
}

// ownCPU is, where it is logged, the processor time of this process until then,
// without its delegates'.
type ownCPU struct{}

// LogValue implements [slog.LogValuer].
func (ownCPU) LogValue() slog.Value {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return slog.StringValue(err.Error())
	}
	return slog.DurationValue(time.Duration(u.Utime.Nano() + u.Stime.Nano()))
}

// engine puts the engine together from the configuration. end ends what it ran to
// plan.
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
