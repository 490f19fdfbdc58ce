package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// Config is the agent's configuration file, JSON. Every source is optional; what
// is empty is not asked. The one-shot mode reads the same file.
type Config struct {
	Node   string `json:"node"`   // this node's name
	Socket string `json:"socket"` // the agent's own unix socket

	// KubeletDir is the kubelet's root directory; the paths below default to
	// places in it. A path of "-" leaves a source out.
	KubeletDir   string `json:"kubeletDir"`
	PodResources string `json:"podResources"` // socket of the PodResources API
	Checkpoint   string `json:"checkpoint"`   // the device-manager checkpoint
	PodsAPI      string `json:"podsAPI"`      // socket of the Pods API

	// ClaimCheckpoint is the kubelet's checkpoint of resource claims; DeviceMetadata
	// its directory of plugins, with what DRA drivers say of claims' devices.
	ClaimCheckpoint string `json:"claimCheckpoint"`
	DeviceMetadata  string `json:"deviceMetadata"`
	// ResourceSlices asks the API server as well what claims' devices are.
	ResourceSlices bool `json:"resourceSlices"`

	// APIServer: "in-cluster", the path of a kubeconfig, or empty for none. In the
	// one-shot mode, which runs on the host, in-cluster reaches no API server: the
	// credential is the agent's pod's, and the snapshot serves alone.
	APIServer string `json:"apiServer"`
	// Snapshot is where definitions outlive the API server.
	Snapshot string `json:"snapshot"`

	// CNIDir is the plugin's cniDir, with the journals; SysRoot the directory that
	// sys/ is found in.
	CNIDir  string `json:"cniDir"`
	SysRoot string `json:"sysRoot"`
	// Reconcile is one of the Reconcile constants; ReconcileExclude are PFs, by PCI
	// address or network device, whose VFs are never repaired; see
	// [reconcile.ParseExclude].
	Reconcile        string   `json:"reconcile"`
	ReconcileExclude []string `json:"reconcileExclude"`

	// Traces is the URL of an OpenTelemetry collector, OTLP over HTTP; empty for none.
	Traces    string `json:"traces"`
	LogFormat string `json:"logFormat"` // of package logs; JSON by default
	Release   string `json:"-"`         // the program's

	// Listen is the address, "host:port", that health, readiness and metrics are
	// served on; empty for none.
	Listen string `json:"listen"`
	// View is the address, "host:port", that the node's view is served on over TLS,
	// to those whom the API server lets see it; empty for none.
	View string `json:"view"`
	// CNIConfig is the plugin's configuration in the runtime's directory, where
	// readiness looks which default network there must be.
	CNIConfig string `json:"cniConfig"`
	// StartupTaint is the key of a taint that this node is relieved of when it is
	// ready; empty for none.
	StartupTaint string `json:"startupTaint"`

	PodManifests        string `json:"podManifests"`        // directory of pods: static pods
	DefinitionManifests string `json:"definitionManifests"` // directory of definitions
}

// InCluster is the value of Config.APIServer that uses the pod's own service
// account.
const InCluster = "in-cluster"

// none leaves out a source that has a default.
const none = "-"

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// ReadConfig reads and completes a configuration file. Unknown keys are refused:
// the file is the administrator's, and a misspelt source would be missed only
// when a pod needs it.
func ReadConfig(path string) (*Config, error) {
	op := "read " + path
	fi, err := os.Stat(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err).WithFix("write the agent's configuration, or run 'manifold-agent install'")
	}
	if fi.Size() > maxConfig {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%d bytes, at most %d are read", fi.Size(), maxConfig)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	return decodeConfig(op, raw)
}

// ReadableConfig returns of a configuration file that [ReadConfig] refuses what can
// be read of it, else defaults, for whoever looks at a node that is broken.
func ReadableConfig(path string) *Config {
	c := &Config{}
	if fi, err := os.Stat(path); err == nil && fi.Size() <= maxConfig {
		if raw, err := os.ReadFile(path); err == nil {
			_ = json.Unmarshal(raw, c) // what it refuses is known, the rest is filled in
		}
	}
	c.defaults()
	return c
}

// decodeConfig decodes and completes a configuration.
func decodeConfig(op string, raw []byte) (*Config, error) {
	c := &Config{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return c, c.complete()
}

// complete fills in defaults, and refuses what cannot be right.
func (c *Config) complete() error {
	const op = "read configuration"
	c.defaults()
	if wrong := c.wrong(); len(wrong) > 0 {
		w := wrong[0]
		return cnierr.New(op, cnierr.InvalidConfig, "key %q: %w", w.key, w.err).WithFix("%s", w.fix)
	}
	for i, entry := range c.ReconcileExclude { // in the spelling in which they are compared
		var err error
		if c.ReconcileExclude[i], err = reconcile.ParseExclude(entry); err != nil {
			return cnierr.New(op, cnierr.InvalidConfig, "%w", err)
		}
	}
	if c.Node != "" {
		return nil
	}
	name, err := os.Hostname()
	if err != nil {
		return cnierr.New(op, cnierr.InvalidConfig, "node: %w", err).WithFix("set node to this node's name")
	}
	c.Node = name
	return nil
}

// defaults fills in what is empty.
func (c *Config) defaults() {
	def := func(field *string, value string) {
		switch *field {
		case "":
			*field = value
		case none:
			*field = ""
		}
	}
	def(&c.Socket, "/run/manifold/agent.sock")
	def(&c.KubeletDir, "/var/lib/kubelet")
	def(&c.PodResources, c.KubeletDir+"/pod-resources/kubelet.sock")
	def(&c.Checkpoint, c.KubeletDir+"/device-plugins/kubelet_internal_checkpoint")
	def(&c.PodsAPI, c.KubeletDir+"/pods-api/pods-api.sock")
	def(&c.ClaimCheckpoint, c.KubeletDir+"/dra_manager_state")
	def(&c.DeviceMetadata, c.KubeletDir+"/plugins")
	def(&c.PodManifests, "")
	def(&c.DefinitionManifests, "")
	def(&c.CNIDir, defaultStateDir)
	def(&c.SysRoot, "/")
	def(&c.Snapshot, "/var/lib/cni/manifold/definitions.snapshot")
	def(&c.CNIConfig, "/etc/cni/net.d/00-manifold.conflist")
	def(&c.Reconcile, ReconcileReport)
	def(&c.LogFormat, logs.JSON)
}

// Assembly is an agent with the things that it runs on.
type Assembly struct {
	Sources Sources
	Checks  []Check // of readiness
	// Reconciler looks at the node's VFs while the assembly runs; nil when it is
	// switched off, or only one call is served.
	Reconciler *reconcile.Reconciler
	client     *kube.Client // nil without an API server
	slices     *kube.Slices // nil when they are not read
	writer     *kube.Writer // nil without an API server
	followed   []source     // of the API server
	run        []func(context.Context)
	close      []func() error
}

// Assemble connects the sources of the configuration. Nothing is asked before
// [Assembly.Run], but what cannot be right is refused at once. With once, only
// what answers a single call is used: no informer, the snapshot instead.
func Assemble(c *Config, once bool, log *slog.Logger) (*Assembly, error) {
	a := &Assembly{}
	a.Sources.Metrics = c.metrics(once)
	var pods []kube.Pods
	var defs []kube.Definitions
	var podsAPI *podresources.Pods
	var watched *kube.PodInformer
	if c.PodsAPI != "" {
		podsAPI = podresources.NewPods(c.PodsAPI)
		pods = append(pods, kubeletPods{podsAPI})
		a.run, a.close = append(a.run, podsAPI.Run), append(a.close, podsAPI.Close)
	}
	switch {
	case c.APIServer == InCluster && once:
		defs = append(defs, snapshot(c.Snapshot))
		a.Sources.Local, a.Sources.Outbox = snapshot(c.Snapshot), outboxOf(c.CNIDir)
	case c.APIServer != "":
		p, d, err := a.apiServer(c, once)
		if err != nil {
			return nil, err
		}
		// Where the kubelet serves its Pods API, no pod is watched at the API server.
		if !once && (c.PodsAPI == "" || !exists(c.PodsAPI)) {
			watched = p
			a.follow(p, log)
		}
		pods, defs = append(pods, p), append(defs, d)
	case c.Snapshot != "" && exists(c.Snapshot):
		defs = append(defs, snapshot(c.Snapshot))
	}
	if c.PodManifests != "" {
		pods = append(pods, kube.NewManifestPods(c.PodManifests, c.Node))
	}
	if c.DefinitionManifests != "" {
		manifests := kube.NewManifestDefinitions(c.DefinitionManifests)
		defs = append(defs, manifests)
		if a.Sources.Local != nil {
			a.Sources.Local = orElse{a.Sources.Local, manifests}
		}
	}
	a.Sources.Pods, a.Sources.Definitions = kube.FirstPods(pods...), kube.FirstDefinitions(defs...)
	a.devices(c, once, log)
	a.guard(c, once, log)
	a.checks(c, podsReady(c, podsAPI, watched))
	return a, nil
}

// follow follows the node's pods at the API server. Where that is forbidden, since
// whoever gave the permissions took every kubelet to serve its Pods API, each is
// asked for when it is needed: nothing that is known is old then.
func (a *Assembly) follow(pods *kube.PodInformer, log *slog.Logger) {
	pods.OnForbidden(func(err error) {
		log.Warn("pods are asked for one by one: the kubelet serves no Pods API, and they may not be watched",
			"err", err, "fix", "let the agent list and watch pods, with podsAPI: false among the chart's values")
	})
	a.run = append(a.run, pods.Run)
	a.followed = append(a.followed, source{"pods", func() (time.Time, error) {
		if pods.Forbidden() != nil {
			return time.Time{}, nil
		}
		return pods.Failing()
	}})
}

// metrics returns what counts, nil where nobody could read it.
func (c *Config) metrics(once bool) *metrics.Metrics {
	if once || c.Listen == "" {
		return nil
	}
	return metrics.New(c.Release)
}

// guard watches over the plugin's configuration.
func (a *Assembly) guard(c *Config, once bool, log *slog.Logger) {
	if once || c.CNIConfig == "" {
		return
	}
	g := &guard{conf: c.CNIConfig, log: log, every: lookEvery, event: func(ctx context.Context, reason, message string) {
		if a.writer == nil {
			return
		}
		if err := a.writer.NodeEvent(ctx, corev1.EventTypeWarning, reason, message); err != nil {
			log.Warn("event not written", "reason", reason, "err", err)
		}
	}}
	a.run = append(a.run, g.run)
	a.Checks = append(a.Checks, Check{"CNI configuration", g.ready})
	if c.StartupTaint != "" {
		a.run = append(a.run, func(ctx context.Context) { a.untaint(ctx, c.StartupTaint, log) })
	}
}

// devices connects the allocation sources.
func (a *Assembly) devices(c *Config, once bool, log *slog.Logger) {
	k := c.kubelet(a.slices)
	a.close = append(a.close, k.close)
	var live podresources.Live // an interface that holds nil would be called
	if k.live != nil {
		live = counted{k.live, a.Sources.Metrics}
	}
	var memory podresources.Memory
	if k.file != nil {
		memory = k.file
		a.run = append(a.run, func(ctx context.Context) { keepLoaded(ctx, k.file, log) })
	}
	a.Sources.Devices = podresources.NewReader(live, memory, k.claims)
	a.Sources.Holders = k.holders
	a.Sources.CNIConfig, a.Sources.Node = c.CNIConfig, c.Node
	a.Sources.View = func(ctx context.Context) *nodeview.View { return c.view(ctx, k) }
	if a.Sources.Metrics != nil {
		a.Sources.Metrics.Node(a.figures(c, k))
	}
	if !once && c.Reconcile != ReconcileOff {
		a.Reconciler = c.reconciler(k)
		if a.Sources.Publisher != nil {
			a.Reconciler.Tell = eventsOf(a.Sources.Publisher, log)
		}
		a.run = append(a.run, func(ctx context.Context) { a.Reconciler.Run(ctx, c.Reconcile == ReconcileRepair, log) })
	}
}

// keepLoaded decodes the checkpoint when it changes, so that the next ADD need
// not. The kubelet creates its directory when it starts.
func keepLoaded(ctx context.Context, file *checkpoint.File, log *slog.Logger) {
	changed, err := file.Watch(ctx)
	if err != nil {
		log.Info("checkpoint is read at each plan", "err", err)
		return
	}
	for range changed {
		if _, err := file.Load(); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.Warn("checkpoint", "err", err)
		}
	}
}

// apiServer connects to the API server.
func (a *Assembly) apiServer(c *Config, once bool) (*kube.PodInformer, kube.Definitions, error) {
	path := c.APIServer
	if path == InCluster {
		path = ""
	}
	cfg, err := kube.Config(path)
	if err != nil {
		return nil, nil, cnierr.New("connect to the API server", cnierr.InvalidConfig, "%w", err)
	}
	client, err := kube.NewClient(cfg)
	if err != nil {
		return nil, nil, cnierr.New("connect to the API server", cnierr.InvalidConfig, "%w", err)
	}
	a.client, a.close = client, append(a.close, func() error { client.Close(); return nil })
	a.writer = kube.NewWriter(client, "manifold", c.Node)
	a.Sources.Publisher = a.writer
	pods, defs := kube.NewPodInformer(client, c.Node), kube.NewDefinitionInformer(client, c.Snapshot)
	if c.ResourceSlices {
		a.slices = kube.NewSlices(client, c.Node)
	}
	if once {
		a.Sources.Local = snapshot(c.Snapshot)
		return pods, defs, nil
	}
	a.run = append(a.run, defs.Run)
	a.followed = append(a.followed, source{"definitions", defs.Failing})
	if a.slices != nil {
		a.run = append(a.run, a.slices.Run)
	}
	a.Sources.Local = local{defs}
	a.Sources.Ready = func() error {
		if !defs.HasSynced() && !exists(c.Snapshot) {
			return errors.New("definitions are not synced, and there is no snapshot of them")
		}
		return nil
	}
	return pods, defs, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Run runs the sources until ctx ends and every one has stopped.
func (a *Assembly) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, f := range a.run {
		all.Go(func() { f(ctx) })
	}
	all.Wait()
}

// Close closes connections.
func (a *Assembly) Close() error {
	var errs []error
	for _, f := range a.close {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// local is the informer's memory and snapshot as a source.
type local struct{ informer *kube.DefinitionInformer }

// Definition implements kube.Definitions.
func (l local) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	return l.informer.Local(ctx, namespace, name)
}

// orElse asks the second source for what the first is sure not to have.
type orElse struct{ first, second kube.Definitions }

// Definition implements kube.Definitions.
func (o orElse) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	def, err := o.first.Definition(ctx, namespace, name)
	if errors.Is(err, kube.ErrNotFound) {
		return o.second.Definition(ctx, namespace, name)
	}
	return def, err
}

// kubeletPods is the Pods API as a source, its errors in package kube's words.
type kubeletPods struct{ *podresources.Pods }

// Pod implements kube.Pods.
func (k kubeletPods) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	pod, err := k.Pods.Pod(ctx, namespace, name, uid)
	switch {
	case errors.Is(err, podresources.ErrPodNotFound):
		return nil, fmt.Errorf("%w: %w", kube.ErrNotFound, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", kube.ErrUnavailable, err)
	}
	return pod, nil
}

// snapshot is the definitions' snapshot file alone, read again at each question:
// for a node without an API server, or a process that serves one call.
type snapshot string

// Definition implements kube.Definitions.
func (s snapshot) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	file, err := kube.OpenSnapshot(string(s))
	if err != nil {
		return nil, err
	}
	return file.Definition(ctx, namespace, name)
}
