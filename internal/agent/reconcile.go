package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// Values of Config.Reconcile.
const (
	ReconcileOff    = "off"    // do not look
	ReconcileReport = "report" // log what is found
	ReconcileRepair = "repair" // and undo it
)

// reconciler returns the reconciler of the configuration.
func (c *Config) reconciler(file *checkpoint.File, live *podresources.Client) *reconcile.Reconciler {
	return &reconcile.Reconciler{
		Journal: journal.Dir{Path: c.CNIDir}, Host: sriov.Host{FS: sriov.FS{Root: c.SysRoot}}, Exclude: c.ReconcileExclude,
		Allocated: func(ctx context.Context) (map[string]bool, error) { return allocated(ctx, file, live) },
	}
}

// allocated returns the device IDs that the kubelet has given to pods.
func allocated(ctx context.Context, file *checkpoint.File, live *podresources.Client) (map[string]bool, error) {
	held, err := holders(ctx, file, live)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(held))
	for id := range held {
		out[id] = true
	}
	return out, nil
}

// holders returns to whom the kubelet has given devices, by device ID and by
// either source: the checkpoint knows pods by UID, the API by name. Of the API an
// answer without any pod says nothing: a kubelet that has just started knows
// none.
func holders(ctx context.Context, file *checkpoint.File, live *podresources.Client) (map[string]nodeview.Holder, error) {
	out := map[string]nodeview.Holder{}
	var problems []error
	known := false
	if file != nil {
		c, err := file.Load()
		if err == nil {
			known = true
			for _, e := range c.Entries {
				for _, n := range e.Devices {
					for _, id := range n.IDs {
						out[id] = nodeview.Holder{PodUID: e.PodUID, Container: e.Container, Resource: e.Resource}
					}
				}
			}
		}
		problems = append(problems, err)
	}
	if live != nil {
		pods, err := live.List(ctx)
		known = known || err == nil && len(pods) > 0
		for pod, devices := range pods {
			for _, d := range devices {
				if d.Claim != nil {
					continue // the API does not say which PCI function it is
				}
				h := nodeview.Holder{Container: d.Container, Resource: d.Resource}
				if had := out[d.ID]; had.Container == h.Container && had.Resource == h.Resource {
					h.PodUID = had.PodUID
				}
				h.Pod = pod.Namespace + "/" + pod.Name
				out[d.ID] = h
			}
		}
		problems = append(problems, err)
	}
	if !known {
		return nil, fmt.Errorf("neither the checkpoint nor the PodResources API says what is allocated: %w", errors.Join(problems...))
	}
	return out, nil
}

// runReconciler runs until ctx ends.
func runReconciler(ctx context.Context, r *reconcile.Reconciler, mode string, log *slog.Logger) {
	if err := r.Run(ctx, mode == ReconcileRepair, log); err != nil {
		log.Warn("VFs are not reconciled any more", "err", err)
	}
}

// kubelet connects to what the kubelet says of devices, apart from an Assembly.
func (c *Config) kubelet() (file *checkpoint.File, live *podresources.Client, done func()) {
	done = func() {}
	if c.Checkpoint != "" {
		file = checkpoint.NewFile(c.Checkpoint)
	}
	if c.PodResources != "" {
		live = podresources.NewClient(c.PodResources)
		done = func() { _ = live.Close() } // nothing was written to it
	}
	return file, live, done
}

// Reconcile looks once at the node's VFs, and repairs what it finds where repair
// is set. It returns what is wrong and was not repaired.
func Reconcile(ctx context.Context, c *Config, repair bool) ([]reconcile.Finding, error) {
	file, live, done := c.kubelet()
	defer done()
	r := c.reconciler(file, live)
	found, err := r.Scan(ctx)
	if err != nil {
		err = cnierr.New("look at the node's VFs", cnierr.IO, "%w", err)
	}
	if !repair {
		return found, err
	}
	var left []reconcile.Finding
	for _, f := range found {
		if e := r.Repair(ctx, f); e != nil {
			left, err = append(left, f), errors.Join(err, fmt.Errorf("%s: %w", f.Device, e))
		}
	}
	return left, err
}
