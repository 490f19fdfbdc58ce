package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov"
)

// Values of Config.Reconcile.
const (
	ReconcileOff    = "off"    // do not look
	ReconcileReport = "report" // log what is found
	ReconcileRepair = "repair" // and undo it
)

// reconciler returns the reconciler of the configuration.
func (c *Config) reconciler(k *kubelet) *reconcile.Reconciler {
	return &reconcile.Reconciler{
		Journal: journal.Dir{Path: c.CNIDir}, Host: sriov.Host{FS: sriov.FS{Root: c.SysRoot}}, Exclude: c.ReconcileExclude, Allocated: k.allocated,
	}
}

// runReconciler runs until ctx ends.
func runReconciler(ctx context.Context, r *reconcile.Reconciler, mode string, log *slog.Logger) {
	if err := r.Run(ctx, mode == ReconcileRepair, log); err != nil {
		log.Warn("VFs are not reconciled any more", "err", err)
	}
}

// Reconcile looks once at the node's VFs, and repairs what it finds where repair
// is set. It returns what is wrong and was not repaired.
func Reconcile(ctx context.Context, c *Config, repair bool) ([]reconcile.Finding, error) {
	k := c.kubelet(nil)
	defer k.close()
	r := c.reconciler(k)
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
