package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/internal/traces"
	"github.com/manifold-cni/manifold/podresources"
)

// source is something that is followed at the API server and can be lost.
type source struct {
	name    string
	failing func() (since time.Time, err error) // err is nil while the source hears from the API server
}

// Trace makes the agent send traces if its configuration names a collector. Failures of
// the collector are logged, and nothing waits for it.
func (a *Assembly) Trace(ctx context.Context, c *configfile.Agent, log *slog.Logger) error {
	if c.Traces == "" {
		return nil
	}
	e, err := traces.New(ctx, c.Traces, c.Release, c.Node)
	if err != nil {
		return cnierr.New("read configuration", cnierr.InvalidConfig, "key %q: %w", "traces", err).WithFix("give the URL of an OTLP collector, http://host:4318")
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are lost", "err", err) }))
	a.Sources.Traces, a.close = e, append(a.close, e.Close)
	return nil
}

// figures returns a function that gathers the node's figures at each scrape: from
// memory, from the checkpoint, which is kept loaded, and from the journals. It calls
// nobody.
func (a *Assembly) figures(c *configfile.Agent, k *kubelet) func() metrics.Node {
	journals := &sandboxes{dir: journal.Dir{Path: c.CNIDir}}
	return func() metrics.Node {
		n := metrics.Node{Attachments: map[string]int{}, Devices: map[metrics.DeviceState]int{}, Failing: map[string]time.Duration{}}
		for _, state := range nodeview.States() {
			n.Attachments[state] = 0
		}
		n.Err = journals.summary(&n)
		for _, d := range n.Attached {
			n.Devices[metrics.DeviceState{Resource: d.Resource, State: metrics.DeviceAttached}]++
		}
		k.count(&n)
		if a.Reconciler != nil {
			n.Findings = map[string]int{}
			for _, kind := range reconcile.Kinds() {
				n.Findings[string(kind)] = 0
			}
			for _, f := range a.Reconciler.Findings() {
				n.Findings[string(f.Kind)]++
			}
		}
		for _, s := range a.followed {
			n.Failing[s.name] = 0
			if since, err := s.failing(); err != nil {
				n.Failing[s.name] = time.Since(since)
			}
		}
		return n
	}
}

// count adds the devices in the kubelet's checkpoint. It counts nothing if the
// checkpoint is unreadable: readiness reports that.
func (k *kubelet) count(n *metrics.Node) {
	if k.file == nil {
		return
	}
	c, err := k.file.Load()
	if err != nil {
		return
	}
	for resource, ids := range c.Registered {
		n.Devices[metrics.DeviceState{Resource: resource, State: metrics.DeviceRegistered}] = len(ids)
	}
	for _, e := range c.Entries {
		n.Devices[metrics.DeviceState{Resource: e.Resource, State: metrics.DeviceAllocated}] += len(e.IDs())
	}
}

// counted is the PodResources API with its calls counted.
type counted struct {
	podresources.Live
	metrics *metrics.Metrics
}

// Get implements podresources.Live.
func (c counted) Get(ctx context.Context, pod podresources.PodKey) ([]podresources.ContainerDevice, error) {
	d, err := c.Live.Get(ctx, pod)
	c.metrics.KubeletCall("Get", callOutcome(err))
	return d, err
}

// List implements podresources.Live.
func (c counted) List(ctx context.Context) (map[podresources.PodKey][]podresources.ContainerDevice, error) {
	pods, err := c.Live.List(ctx)
	c.metrics.KubeletCall("List", callOutcome(err))
	return pods, err
}

// callOutcome names the outcome of a call, for the metric.
func callOutcome(err error) string {
	for name, sentinel := range map[string]error{
		"rate-limited": podresources.ErrRateLimited, "not-found": podresources.ErrPodNotFound, "unimplemented": podresources.ErrUnimplemented,
	} {
		if errors.Is(err, sentinel) {
			return name
		}
	}
	if err != nil {
		return "unavailable"
	}
	return "success"
}
