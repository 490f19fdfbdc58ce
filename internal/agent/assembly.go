package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// Assembly is an agent's sources with everything that runs behind them.
type Assembly struct {
	Sources Sources
	Checks  []Check // the checks of readiness
	// Reconciler examines the node's VFs while the assembly runs. It is nil when it is
	// switched off, and when only one call is served.
	Reconciler *reconcile.Reconciler
	client     *kube.Client // nil without an API server
	slices     *kube.Slices // nil when ResourceSlices are not read
	writer     *kube.Writer // nil without an API server
	followed   []source     // what is followed at the API server
	run        []func(context.Context)
	close      []func() error
}

// Assemble connects the sources of the configuration. It asks nothing before
// [Assembly.Run], but refuses at once what cannot be right. With once, it uses only
// what can answer a single call: the snapshot instead of an informer.
func Assemble(c *configfile.Agent, once bool, log *slog.Logger) (*Assembly, error) {
	a := &Assembly{}
	a.Sources.Metrics, a.Sources.Journal, a.Sources.calls = metricsOf(c, once), journal.Dir{Path: c.CNIDir}, newCalls(log)
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
	case c.APIServer == configfile.InCluster && once:
		file := snapshotAt(c.Snapshot, once)
		defs = append(defs, file)
		a.Sources.Local, a.Sources.Outbox = file, outboxOf(c.CNIDir)
	case c.APIServer != "":
		p, d, err := a.apiServer(c, once)
		if err != nil {
			return nil, err
		}
		// A kubelet that serves its Pods API saves watching pods at the API server.
		if !once && (c.PodsAPI == "" || !files.Exists(c.PodsAPI)) {
			watched = p
			a.follow(p, log)
		}
		pods, defs = append(pods, p), append(defs, d)
	case c.Snapshot != "" && files.Exists(c.Snapshot):
		defs = append(defs, snapshotAt(c.Snapshot, once))
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
	a.checks(c, podsReady(c, podsAPI, watched))
	if !once {
		a.startupTaint(c.StartupTaint, log)
	}
	return a, nil
}

// follow watches the node's pods at the API server. The API server may forbid it, if
// whoever granted the permissions expected every kubelet to serve its Pods API. Then
// each pod is asked for when it is needed. Such answers are never stale, so the source
// does not count as failing.
func (a *Assembly) follow(pods *kube.PodInformer, log *slog.Logger) {
	pods.OnForbidden(func(err error) {
		log.Warn("fetching pods one by one: the kubelet serves no Pods API, and the API server forbids watching pods",
			"err", err, "fix", "allow the agent to list and watch pods: set podsAPI: false in the chart's values")
	})
	a.run = append(a.run, pods.Run)
	a.followed = append(a.followed, source{"pods", func() (time.Time, error) {
		if pods.Forbidden() != nil {
			return time.Time{}, nil
		}
		return pods.Failing()
	}})
}

// metricsOf returns the metrics, or nil if nobody could read them.
func metricsOf(c *configfile.Agent, once bool) *metrics.Metrics {
	if once || c.Listen == "" {
		return nil
	}
	return metrics.New(c.Release)
}

// startupTaint arranges the removal of the startup taint, if there is one.
func (a *Assembly) startupTaint(key string, log *slog.Logger) {
	if key != "" {
		a.run = append(a.run, func(ctx context.Context) { a.untaint(ctx, key, log) })
	}
}

// Also runs something beside the sources, and adds its readiness to the checks. It must
// be called before [Assembly.Run].
func (a *Assembly) Also(name string, run func(context.Context), ready func(context.Context) error) {
	a.run = append(a.run, run)
	a.Checks = append(a.Checks, Check{name, ready})
}

// NodeEvents returns a function that writes a warning about the node. Without an API
// server the function does nothing.
func (a *Assembly) NodeEvents(log *slog.Logger) func(ctx context.Context, reason, message string) {
	return func(ctx context.Context, reason, message string) {
		if a.writer == nil {
			return
		}
		if err := a.writer.NodeEvent(ctx, corev1.EventTypeWarning, reason, message); err != nil {
			log.Warn("event not written", "reason", reason, "err", err)
		}
	}
}

// devices connects the sources of allocations.
func (a *Assembly) devices(c *configfile.Agent, once bool, log *slog.Logger) {
	k := newKubelet(c, a.slices)
	a.close = append(a.close, k.close)
	var live podresources.Live // nil without a client, never an interface that holds nil
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
	a.Sources.View = func(ctx context.Context) *nodeview.View { return viewOf(ctx, c, k) }
	if a.Sources.Metrics != nil {
		a.Sources.Metrics.Node(a.figures(c, k))
	}
	if !once && c.Reconcile != configfile.ReconcileOff {
		a.Reconciler = reconcilerOf(c, k)
		if a.Sources.Publisher != nil {
			a.Reconciler.Tell = eventsOf(a.Sources.Publisher, log)
		}
		a.Reconciler.Count = func(kind reconcile.Kind, failed bool) { a.Sources.Metrics.Repaired(string(kind), failed) }
		a.run = append(a.run, func(ctx context.Context) { a.Reconciler.Run(ctx, c.Reconcile == configfile.ReconcileRepair, log) })
	}
}

// keepLoaded decodes the checkpoint when it changes, so that the next ADD does not have
// to. The watch fails if the kubelet has not created the directory yet; then every plan
// reads the file.
func keepLoaded(ctx context.Context, file *checkpoint.File, log *slog.Logger) {
	changed, err := file.Watch(ctx)
	if err != nil {
		log.Info("cannot watch the checkpoint; reading it for each plan", "err", err)
		return
	}
	for range changed {
		if _, err := file.Load(); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.Warn("checkpoint", "err", err)
		}
	}
}

// apiServer connects to the API server.
func (a *Assembly) apiServer(c *configfile.Agent, once bool) (*kube.PodInformer, kube.Definitions, error) {
	path := c.APIServer
	if path == configfile.InCluster {
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
		a.Sources.Local = snapshotAt(c.Snapshot, once)
		return pods, defs, nil
	}
	a.run = append(a.run, defs.Run)
	a.followed = append(a.followed, source{"definitions", defs.Failing})
	if a.slices != nil {
		a.run = append(a.run, a.slices.Run)
	}
	a.Sources.Local = local{defs}
	a.Sources.Ready = func() error {
		if !defs.HasSynced() && !files.Exists(c.Snapshot) {
			return errors.New("definitions are not synced, and there is no snapshot of them")
		}
		return nil
	}
	return pods, defs, nil
}

// Run runs the sources until ctx ends and all of them have stopped.
func (a *Assembly) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, f := range a.run {
		all.Go(func() { f(ctx) })
	}
	all.Wait()
}

// Close closes the connections.
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

// orElse asks the second source for a definition that the first knows not to exist.
type orElse struct{ first, second kube.Definitions }

// Definition implements kube.Definitions.
func (o orElse) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	def, err := o.first.Definition(ctx, namespace, name)
	if errors.Is(err, kube.ErrNotFound) {
		return o.second.Definition(ctx, namespace, name)
	}
	return def, err
}

// kubeletPods is the kubelet's Pods API as a source. It translates errors to the
// sentinels of package kube.
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

// snapshot is the definitions' snapshot file alone, as the function reads it for each
// lookup. It is for a node without an API server, or a process that serves one call.
type snapshot func() (*kube.Snapshot, error)

// snapshotAt returns the snapshot file at path. With once, the first lookup reads the
// file for all others: that takes longer than the lookup of a definition.
func snapshotAt(path string, once bool) snapshot {
	read := func() (*kube.Snapshot, error) { return kube.OpenSnapshot(path) }
	if once {
		return sync.OnceValues(read)
	}
	return read
}

// Definition implements kube.Definitions.
func (s snapshot) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	file, err := s()
	if err != nil {
		return nil, err
	}
	return file.Definition(ctx, namespace, name)
}
