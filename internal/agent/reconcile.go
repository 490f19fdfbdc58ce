package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov"
)

// reconcilerOf returns the reconciler of the configuration.
func reconcilerOf(c *configfile.Agent, k *kubelet) *reconcile.Reconciler {
	r := &reconcile.Reconciler{
		Journal: journal.Dir{Path: c.CNIDir}, Host: sriov.Host{FS: sriov.FS{Root: c.SysRoot}}, Exclude: c.ReconcileExclude, Allocated: k.allocated,
	}
	// The kubelet creates its socket anew when it starts, and replaces its checkpoints
	// when it allocates.
	for _, path := range []string{c.Checkpoint, c.ClaimCheckpoint, c.PodResources} {
		if path != "" {
			r.Watch = append(r.Watch, filepath.Dir(path))
		}
	}
	return r
}

// eventsOf returns a function that writes an Event for each finding: about the pod that
// holds the VF while it lives, else about the node.
func eventsOf(to Publisher, log *slog.Logger) func(context.Context, string, reconcile.Finding) {
	return func(ctx context.Context, reason string, f reconcile.Finding) {
		ctx, cancel := context.WithTimeout(ctx, eventTime)
		defer cancel()
		kind := corev1.EventTypeWarning
		if reason == reconcile.ReasonRepaired {
			kind = corev1.EventTypeNormal
		}
		var err error
		namespace, name, ok := strings.Cut(f.Pod, "/")
		if ok && f.Kind.Living() && reason != reconcile.ReasonRepaired {
			err = to.Event(ctx, kube.PodRef{Namespace: namespace, Name: name, UID: f.PodUID}, kind, reason, f.String())
		} else {
			err = to.NodeEvent(ctx, kind, reason, f.String())
		}
		if err != nil {
			log.Warn("event not written", "reason", reason, "device", f.Device, "err", err)
		}
	}
}

// NewReconciler returns the reconciler of a configuration, without an agent. Call done
// when the reconciler is no longer needed.
func NewReconciler(c *configfile.Agent) (r *reconcile.Reconciler, done func() error) {
	k := newKubelet(c, nil)
	return reconcilerOf(c, k), k.close
}

// Reconcile examines the node's VFs once, and repairs its findings if repair is set. It
// returns the findings that were not repaired.
func Reconcile(ctx context.Context, c *configfile.Agent, repair bool) ([]reconcile.Finding, error) {
	r, done := NewReconciler(c)
	defer done()
	found, err := r.Scan(ctx)
	if err != nil {
		err = cnierr.New("examine the node's VFs", cnierr.IO, "%w", err)
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

// Accept takes a VF, named by its PCI address, out of quarantine in its present state.
func Accept(ctx context.Context, c *configfile.Agent, device string) error {
	address, err := sriov.ParseAddress(device)
	if err != nil {
		return cnierr.New("accept VF", cnierr.InvalidConfig, "%w", err).WithFix("name the VF by its PCI address, as 'manifold-agent reconcile' prints it")
	}
	return reconcilerOf(c, &kubelet{}).Accept(ctx, address)
}
