package reconcile

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/manifold-cni/manifold/internal/journal"
)

// An ADD makes many events. A scan waits until nothing has happened for rest, but at most
// until most after the first event.
const (
	rest = time.Second
	most = 10 * time.Second
)

// pause is how long the journals' directory is not watched after it has reported a
// change. The ADD of a pod changes it a dozen times. Each change would wake the agent, on
// a processor that the ADD could use.
const pause = rest / 4

// ReasonRepaired is the reason for a repaired VF; for findings see [Reason].
const ReasonRepaired = "VFRepaired"

// Reason returns the reason under which a kind of finding is told: one word in CamelCase
// that never changes, because Events carry it.
func Reason(k Kind) string {
	return map[Kind]string{
		Stranded: "VFStranded", Vanished: "VFVanished", Replaced: "VFReplaced", Drifted: "VFDrifted", Unreleased: "VFUnreleased", Orphaned: "VFOrphaned", Leftover: "VFLeftover", Quarantined: "VFQuarantined",
	}[k]
}

// deafTime is how long a reconciler waits before it listens again if it cannot receive
// the events of the kernel or of files, and before it scans again if it has seen no VF.
const deafTime = 30 * time.Second

// Run scans at its start, and whenever links, drivers, journals or the kubelet's
// directories have changed and come to rest, until ctx ends. It does not poll. If it
// cannot receive changes, it logs that, scans once, and tries to listen again every half
// minute, with a scan for what it missed. Run logs findings when they come and go, and
// tells them when they come. With repair set it also repairs them; see
// [Reconciler.Repair]. A repair that failed is not tried again; a repair that gave way is
// tried again with the next scan.
func (r *Reconciler) Run(ctx context.Context, repair bool, log *slog.Logger) {
	state := round{}
	scan := func() bool { return r.round(ctx, &state, repair, log) }
	for {
		err := r.listen(ctx, scan)
		if ctx.Err() != nil {
			return
		}
		again := cmp.Or(r.deaf, deafTime)
		log.Warn("cannot receive changes of VFs, trying again later", "err", err, "after", again)
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

// listen scans at the start, and again whenever something changed or a scan has seen
// nothing, until ctx ends or changes can no longer be received.
func (r *Reconciler) listen(ctx context.Context, scan func() (seen bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, files, err := r.sources(ctx)
	if err != nil {
		scan()
		return err
	}
	defer files.Close()
	w := watched(append([]string{r.Journal.Path, filepath.Join(r.Journal.Path, journal.QuarantineDir)}, r.Watch...))
	w.add(files)
	alarm, unwatched := alarm{timer: time.NewTimer(0)}, make(<-chan time.Time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-events:
			if !open {
				return errors.New("the kernel's events have ended")
			}
			alarm.set()
		case e := <-files.Events:
			if w.concerns(files, e) {
				alarm.set()
				if filepath.Dir(e.Name) == filepath.Clean(r.Journal.Path) && files.Remove(r.Journal.Path) == nil {
					unwatched = time.After(pause)
				}
			}
		case <-unwatched:
			w.add(files)
			alarm.set() // for what changed in the meantime
		case <-files.Errors: // events were lost
			w.add(files)
			alarm.set()
		case <-alarm.timer.C:
			alarm.first = time.Time{}
			if !scan() { // there may be no event when a scan is possible again
				alarm.timer.Reset(cmp.Or(r.deaf, deafTime))
			}
		}
	}
}

// sources opens the sources of changes: the kernel's events, until ctx ends, and the
// events of files.
func (r *Reconciler) sources(ctx context.Context) (<-chan struct{}, *fsnotify.Watcher, error) {
	if err := os.MkdirAll(r.Journal.Path, 0o700); err != nil {
		return nil, nil, err
	}
	events, err := r.Host.Events(ctx)
	if err != nil {
		return nil, nil, err
	}
	files, err := fsnotify.NewWatcher()
	return events, files, err
}

// alarm decides when to scan.
type alarm struct {
	timer *time.Timer
	first time.Time // the first event since the last scan; zero if none
}

// set reports an event.
func (a *alarm) set() {
	now := time.Now()
	if a.first.IsZero() {
		a.first = now
	}
	a.timer.Reset(max(0, min(rest, most-now.Sub(a.first))))
}

// watched are directories that may come and go.
type watched []string

// add watches all directories that exist and, for each, its nearest existing parent, in
// which it appears when it is created.
func (w watched) add(files *fsnotify.Watcher) {
	for _, dir := range w {
		_ = files.Add(dir) // it may not exist: then its parent reports when it is created
		for above := filepath.Dir(dir); files.Add(above) != nil && above != filepath.Dir(above); {
			above = filepath.Dir(above)
		}
	}
}

// concerns reports whether an event means that something changed in one of the
// directories, or that one of them came or went.
func (w watched) concerns(files *fsnotify.Watcher, e fsnotify.Event) bool {
	name := filepath.Clean(e.Name)
	// Usually the new file is a pod's lock or journal, and not on the path of a
	// directory.
	if e.Has(fsnotify.Create) && slices.ContainsFunc(w, func(dir string) bool { return dir == name || strings.HasPrefix(dir, name+"/") }) {
		w.add(files)
	}
	if journal.IsRepairLock(filepath.Base(name)) {
		return false // a repair that gives way would cause its own next attempt
	}
	return slices.ContainsFunc(w, func(dir string) bool { return dir == name || dir == filepath.Dir(name) })
}

// round is the result of the last scan.
type round struct {
	found   []Finding
	gaveWay map[Finding]string // findings whose repair gave way, and why
	problem string
}

// round scans once, tells what is new and what is gone, and repairs. It reports whether
// it has seen the node's VFs; if not, all earlier findings stand.
func (r *Reconciler) round(ctx context.Context, last *round, repair bool, log *slog.Logger) (seen bool) {
	now, err := r.Scan(ctx)
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != last.problem && problem != "" {
		log.Warn("reconcile", "err", problem)
	}
	last.problem = problem
	if errors.Is(err, errUnseen) {
		return false
	}
	r.keep(now)
	for _, f := range last.found {
		if !slices.Contains(now, f) {
			log.Info("VF is in order again", "was", f)
		}
	}
	gaveWay := map[Finding]string{}
	for _, f := range now {
		why, untried := last.gaveWay[f]
		if !slices.Contains(last.found, f) {
			untried = true
			log.Warn("VF", "finding", f)
			r.tell(ctx, Reason(f.Kind), f)
		}
		if !repair || !untried {
			continue
		}
		if err := r.repair(ctx, f, log); err != nil {
			if gaveWay[f] = err.Error(); gaveWay[f] != why {
				log.Info("VF is left alone", "finding", f, "why", err)
			}
		}
	}
	last.found, last.gaveWay = now, gaveWay
	return true
}

// repair repairs one finding and reports the outcome. The error is the reason why it was
// not tried.
func (r *Reconciler) repair(ctx context.Context, f Finding, log *slog.Logger) (untried error) {
	err := r.Repair(ctx, f)
	if errors.Is(err, ErrNotRepaired) {
		return err
	}
	if r.Count != nil {
		r.Count(f.Kind, err != nil)
	}
	if err != nil {
		log.Warn("VF cannot be repaired", "finding", f, "err", err)
		return nil
	}
	log.Info("VF repaired", "was", f)
	r.tell(ctx, ReasonRepaired, f)
	return nil
}

func (r *Reconciler) tell(ctx context.Context, reason string, f Finding) {
	if r.Tell != nil {
		r.Tell(ctx, reason, f)
	}
}
