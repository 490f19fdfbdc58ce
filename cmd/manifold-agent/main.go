// Command manifold-agent is the node's source of plans for the CNI plugin manifold.
//
//	manifold-agent serve      answers plan requests on the agent's unix socket
//	manifold-agent plan       answers one request, stdin to stdout, without an agent
//	manifold-agent install    installs both programs and the CNI configuration
//	manifold-agent uninstall  removes them
//	manifold-agent await      waits, for the uninstallation of the chart
//	manifold-agent reconcile  checks the node's VFs once, and can repair them
//	manifold-agent config     converts and validates configuration files
//
// Each command has -h. A configuration file names the sources that plans are made from;
// see configfile.Agent.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/install"
	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/plan"
)

// release is set by the build.
var release = "unreleased"

const defaultConfig = "/etc/cni/net.d/manifold.d/agent.json"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifold-agent:", err)
		os.Exit(1)
	}
}

const usage = `usage: manifold-agent COMMAND [flags]

  serve      answer plan requests on the agent's unix socket
  plan       answer one request, stdin to stdout, without an agent
  install    install both programs and the CNI configuration
  uninstall  remove them
  await      wait until a DaemonSet's pods are ready on every node, or for a signal
  reconcile  check the node's VFs once and print what is wrong; with --repair, undo it
  config     'convert FILE' converts a configuration of Multus to Manifold's,
             'validate FILE' checks the plugin's configuration and, with
             '--agent-config FILE', the agent's, and prints mistakes by line and key
  version    print the release
`

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("manifold-agent "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	switch args[0] {
	case "serve", "plan":
		path := flags.String("config", defaultConfig, "the agent's configuration `file`")
		node := flags.String("node", "", "this node's `name`; by default the configured one, else the host's name")
		if err := flags.Parse(args[1:]); err != nil {
			return flag.ErrHelp
		}
		conf, err := configfile.ReadAgent(*path)
		if err != nil {
			return err
		}
		conf.Node = cmp.Or(*node, conf.Node)
		if args[0] == "plan" {
			return planOnce(ctx, conf, stdin, stdout, stderr)
		}
		return serve(ctx, conf, *path, stderr)
	case "reconcile":
		path := flags.String("config", defaultConfig, "the agent's configuration `file`")
		repair := flags.Bool("repair", false, "undo what is found")
		accept := flags.String("accept", "", "first take the VF at this PCI `address` out of quarantine in its current state")
		if err := flags.Parse(args[1:]); err != nil {
			return flag.ErrHelp
		}
		return reconcileOnce(ctx, *path, *repair, *accept, stdout)
	case "install", "uninstall":
		i := installFlags(flags)
		if err := flags.Parse(args[1:]); err != nil {
			return flag.ErrHelp
		}
		if args[0] == "install" {
			return i.Install(ctx, stdout)
		}
		return i.Uninstall(stdout)
	case "await":
		daemonSet := flags.String("daemonset", "", "`namespace/name` of a DaemonSet in this pod's cluster")
		if err := flags.Parse(args[1:]); err != nil {
			return flag.ErrHelp
		}
		return install.Await(ctx, *daemonSet, stdout)
	case "config":
		return config(args[1:], stdout, stderr)
	case "version":
		_, err := fmt.Fprintln(stdout, release)
		return err
	}
	fmt.Fprint(stderr, usage)
	return flag.ErrHelp
}

// planOnce serves the calls of one run of the plugin from stdin, on a node whose agent
// does not run.
func planOnce(ctx context.Context, conf *configfile.Agent, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	// The process answers a few calls and exits. As in the plugin, collecting garbage
	// costs more than it saves, and the limit bounds the memory.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	log := logs.New(stderr, logs.Text, slog.LevelWarn)
	a, err := agent.Assemble(conf, true, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	var background sync.WaitGroup
	defer background.Wait()
	return plan.ServeStream(ctx, stdin, stdout, agent.New(a.Sources, log, background.Go))
}

// backgroundPause is how long after an answer the agent starts what nobody waits for: a
// status published later, an Event. The plugin that got the answer ends in this time and
// has the processors to itself. The benchmark in test/bench takes the pause for rest if
// it is longer than one of its spans of rest.
const backgroundPause = 3 * time.Millisecond

// afterPause returns a function that runs work in group after backgroundPause.
func afterPause(group *sync.WaitGroup) func(func()) {
	return func(work func()) {
		group.Go(func() {
			time.Sleep(backgroundPause) // an agent that stops waits for the group, so nothing is lost
			work()
		})
	}
}

// serve answers on the socket until ctx ends, then finishes the requests under way. path
// is the configuration file.
func serve(ctx context.Context, conf *configfile.Agent, path string, stderr io.Writer) (err error) {
	// The agent runs on every node: a smaller heap is worth the time of collecting
	// earlier.
	debug.SetGCPercent(50)
	log := logs.New(stderr, conf.LogFormat, slog.LevelInfo)
	klog.SetSlogLogger(log) // client-go's messages about its watches
	conf.Release = release
	a, err := agent.Assemble(conf, false, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	if conf.CNIConfig != "" {
		guard := install.NewGuard(conf.CNIConfig, a.NodeEvents(log), log)
		a.Also("CNI configuration", guard.Run, guard.Ready)
	}
	if err := a.Trace(ctx, conf, log); err != nil {
		return err
	}
	var sources, background sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer stop()
	planner := newCounted(agent.New(a.Sources, log, afterPause(&background)))
	// Ports before the socket: an agent that finds its ports taken, because another agent
	// still runs, must not have taken that agent's socket.
	err = errors.Join(serveHTTP(running, conf, a, &sources, log), serveView(running, conf, path, a, planner, &sources, log))
	var l *net.UnixListener
	if err == nil {
		l, err = plan.Listen(filepath.Dir(conf.Socket), conf.Socket)
	}
	if err != nil {
		stop()
		sources.Wait()
		return err
	}
	sources.Go(func() { a.Run(running) })
	sources.Go(func() { planner.settle(running) })
	log.Info("serving", "release", release, "socket", conf.Socket, "node", conf.Node)
	sources.Go(func() { planner.Deliver(running) })
	err = plan.Serve(ctx, l, planner)
	stop()
	sources.Wait() // first: Deliver is a source, and starts work in the background
	background.Wait()
	log.Info("stopped")
	return err
}

// serveHTTP answers on the configured address until ctx ends. It fails at once if it
// cannot listen on the address. Later failures are only logged, since pods need no
// metrics.
func serveHTTP(ctx context.Context, conf *configfile.Agent, a *agent.Assembly, running *sync.WaitGroup, log *slog.Logger) error {
	if conf.Listen == "" {
		return nil
	}
	l, err := agent.ListenHTTP(conf.Listen)
	if err != nil {
		return err
	}
	handler := a.Public(conf)
	running.Go(func() {
		if err := agent.ServeHTTP(ctx, l, handler, a.Sources.Metrics, log); err != nil {
			log.Error("health and metrics are no longer served", "err", err)
		}
	})
	log.Info("serving HTTP", "address", l.Addr().String())
	return nil
}

// serveView serves the node's view to users on the configured address until ctx ends.
func serveView(ctx context.Context, conf *configfile.Agent, path string, a *agent.Assembly, i plan.Inspector, running *sync.WaitGroup, log *slog.Logger) error {
	if conf.View == "" {
		return nil
	}
	l, err := agent.ListenHTTP(conf.View)
	if err != nil {
		return err
	}
	handler, err := a.Private(conf, i, inspect.Local{Config: path}, log)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	running.Go(func() {
		if err := agent.ServeView(ctx, l, conf.Node, handler, a.Sources.Metrics, log); err != nil {
			log.Error("the node's view is no longer served", "err", err)
		}
	})
	log.Info("serving the node's view", "address", l.Addr().String())
	return nil
}

// reconcileOnce prints what is wrong with the node's VFs, one JSON object per line.
func reconcileOnce(ctx context.Context, config string, repair bool, accept string, stdout io.Writer) error {
	conf, err := configfile.ReadAgent(config)
	if err != nil {
		return err
	}
	if accept != "" {
		if err := agent.Accept(ctx, conf, accept); err != nil {
			return err
		}
	}
	found, err := agent.Reconcile(ctx, conf, repair)
	out := json.NewEncoder(stdout)
	for _, f := range found {
		err = errors.Join(err, out.Encode(f))
	}
	return err
}

// installFlags binds the flags of install and uninstall.
func installFlags(flags *flag.FlagSet) *install.Installer {
	i := &install.Installer{}
	flags.StringVar(&i.From, "from", "", "`directory` with the programs to install; by default that of this program")
	flags.StringVar(&i.BinDir, "cni-bin-dir", "/opt/cni/bin", "`directory` where the runtime looks for CNI plugins")
	flags.StringVar(&i.ConfDir, "cni-conf-dir", "/etc/cni/net.d", "`directory` where the runtime looks for its CNI configuration")
	flags.StringVar(&i.ConfName, "cni-conf-name", "00-manifold.conflist", "`name` of Manifold's file in --cni-conf-dir")
	flags.StringVar(&i.StateDir, "state-dir", "", "`directory` of the journal; by default cniDir of --config, else of the installed configuration, else /var/lib/cni/manifold")
	flags.StringVar(&i.ClusterNetwork, "cluster-network", "", "`name` or file of the cluster default network; by default the first configuration in --cni-conf-dir")
	flags.StringVar(&i.Config, "config", "", "`file` with the plugin's configuration, or some keys of it, JSON")
	flags.StringVar(&i.AgentConfig, "agent-config", "", "`file` with the agent's configuration, JSON; by default the installed one, else one without an API server")
	flags.DurationVar(&i.Wait, "wait", 0, "install: how `long` to wait for a cluster default network")
	flags.StringVar(&i.Node, "node", "", "this node's `name` for the agent's configuration; by default the one in --agent-config")
	flags.StringVar(&i.ToMultus, "to-multus", "", "uninstall: hand the attached sandboxes over to Multus in this `directory`, its cniDir")
	flags.BoolVar(&i.LeaveAttached, "leave-attached", false, "uninstall: succeed although sandboxes are still attached; the programs that they need stay")
	flags.BoolVar(&i.Force, "force", false, "proceed even if the node is left without a source of pods, without a network, or with journals in another directory")
	return i
}
