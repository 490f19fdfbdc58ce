package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
)

// rest is how long nothing must happen before a scan: an ADD makes many events.
const rest = time.Second

// Run scans at the start, and whenever links or journals have changed and come
// to rest, until ctx ends: it does not poll. Findings are logged when they come
// and when they go. With repair they are repaired; see [Reconciler.Repair].
func (r *Reconciler) Run(ctx context.Context, repair bool, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return err
	}
	if err := os.MkdirAll(r.Journal.Path, 0o700); err != nil {
		return err
	}
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer files.Close()
	if err := files.Add(r.Journal.Path); err != nil {
		return err
	}
	var last []Finding
	var problem string
	timer := time.NewTimer(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-links:
			if !open {
				return errors.New("the subscription to links ended")
			}
			timer.Reset(rest)
		case <-files.Events:
			timer.Reset(rest)
		case err := <-files.Errors:
			return err
		case <-timer.C:
			last, problem = r.round(ctx, last, problem, repair, log)
		}
	}
}

// round scans once, logs what is new and what is gone, and repairs.
func (r *Reconciler) round(ctx context.Context, last []Finding, problem string, repair bool, log *slog.Logger) ([]Finding, string) {
	now, err := r.Scan(ctx)
	r.keep(now)
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != problem && said != "" {
		log.Warn("reconcile", "err", said)
	}
	for _, f := range now {
		if !slices.Contains(last, f) {
			log.Warn("VF", "finding", f)
		}
	}
	for _, f := range last {
		if !slices.Contains(now, f) {
			log.Info("VF is in order again", "was", f)
		}
	}
	for _, f := range now {
		if !repair || slices.Contains(last, f) { // once: what did not help will not
			continue
		}
		switch err := r.Repair(ctx, f); {
		case err == nil:
			log.Info("VF repaired", "was", f)
		case !errors.Is(err, ErrNotRepaired):
			log.Warn("VF cannot be repaired", "finding", f, "err", err)
		}
	}
	return now, said
}
