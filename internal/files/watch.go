package files

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

// LookEvery is how often to look at a watched directory without a notification. A
// change is normally notified at once. But a node may have no inotify instance left,
// and the watch of a directory that is removed and created anew sees nothing of the new
// one.
const LookEvery = 10 * time.Second

// Watcher tells when to look at a directory.
type Watcher struct {
	inotify *fsnotify.Watcher // nil when none is available
	changes <-chan fsnotify.Event
	lost    <-chan error // errors, of which an overflow means lost changes
	every   time.Duration
	err     error
}

// Watch watches a directory. [Watcher.Await] also returns after every, whatever
// happens. Without inotify, which [Watcher.Err] reports, that is all it does.
func Watch(dir string, every time.Duration) *Watcher {
	w := &Watcher{every: every}
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		w.err = err
		return w
	}
	w.inotify, w.changes, w.lost, w.err = inotify, inotify.Events, inotify.Errors, inotify.Add(dir)
	return w
}

// Err returns why changes are not notified, or nil.
func (w *Watcher) Err() error { return w.err }

// Await waits for a change, but no longer than the watcher's interval, and consumes all
// pending notifications. It returns false when ctx has ended.
func (w *Watcher) Await(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(w.every):
	case <-w.lost:
	case <-w.changes:
	}
	for {
		select {
		case <-w.changes:
		case <-w.lost:
		default:
			return ctx.Err() == nil
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() {
	if w.inotify != nil {
		_ = w.inotify.Close() // the descriptor is gone whatever Close returns
	}
}
