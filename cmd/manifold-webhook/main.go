// Command manifold-webhook is the admission webhook for network-attachment
// definitions and for the pods that select them; see package webhook. It runs in
// the cluster with two or more replicas. It is optional: without it the nodes refuse
// the same pods, later.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/webhook"
)

// release is the version of this build; the linker sets it.
var release = "unreleased"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifold-webhook:", err)
		os.Exit(1)
	}
}

// run parses the flags and serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("manifold-webhook", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var o webhook.Options
	bind(flags, &o)
	plugin := flags.String("plugin-config", "", "`file` with the plugin's configuration on the nodes (JSON), for its rules on networks; by default no configuration is assumed")
	format := flags.String("log-format", logs.JSON, "`format` of the log: json or text")
	version := flags.Bool("version", false, "print the release")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *version {
		_, err := fmt.Fprintln(stdout, release)
		return err
	}
	if *format != logs.JSON && *format != logs.Text {
		return fmt.Errorf("--log-format=%q is unknown: choose json or text", *format)
	}
	if *plugin != "" {
		raw, err := os.ReadFile(*plugin)
		if err != nil {
			return err
		}
		o.PluginConfig = raw
	}
	log := logs.New(stderr, *format, slog.LevelInfo)
	klog.SetSlogLogger(log) // for what client-go logs about its watch
	log.Info("serving", "release", release, "port", o.Port)
	if err := webhook.Run(ctx, o, log); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// bind binds the options to flags and sets their defaults.
func bind(flags *flag.FlagSet, o *webhook.Options) {
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "`file` with access to the API server; by default the service account of the pod")
	flags.StringVar(&o.Host, "host", "", "`address` to serve reviews on; by default all addresses")
	flags.IntVar(&o.Port, "port", 9443, "`port` to serve reviews on")
	flags.StringVar(&o.Metrics, "metrics-address", ":9115", "`address` of /metrics, 0 for none")
	flags.StringVar(&o.Health, "health-address", ":9116", "`address` of /healthz and /readyz, 0 for none")
	flags.DurationVar(&o.Drain, "drain", 10*time.Second, "`time` to keep serving after SIGTERM, while callers move to other replicas")
	flags.StringVar(&o.CertDir, "cert-dir", "", "`directory` with tls.crt and tls.key that another program renews, such as cert-manager; by default the webhook issues and rotates its own certificates")
	flags.StringVar(&o.Namespace, "namespace", "", "`namespace` of the Secret and the Service")
	flags.StringVar(&o.Secret, "secret", "manifold-webhook", "`name` of the Secret that holds the certificates; it must exist, and may be empty")
	flags.StringVar(&o.Service, "service", "manifold-webhook", "`name` of the Service that the API server calls")
	flags.StringVar(&o.Configuration, "configuration", "manifold", "`name` of the two webhook configurations that get the authority's certificate")
	flags.DurationVar(&o.CALifetime, "ca-lifetime", 365*24*time.Hour, "`time` that an authority is valid; it is replaced when a third is left")
	flags.DurationVar(&o.CertLifetime, "cert-lifetime", 90*24*time.Hour, "`time` that a certificate is valid; it is replaced when a third is left")
	flags.DurationVar(&o.Settle, "settle", 5*time.Minute, "`time` that a new authority is published before it signs, so that every API server trusts it")
	flags.DurationVar(&o.Interval, "check-interval", 10*time.Second, "`time` between checks of the certificates")
}
