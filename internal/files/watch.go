package files

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

// LookEvery is the time between two looks at a watched directory of which nothing is
// told. A change is told at once, but a node that has no inotify instance left gives no
// watch, and one on a directory that is made anew tells nothing of the new one.
const LookEvery = 10 * time.Second

// Watcher tells when to look at a directory.
type Watcher struct {
	inotify *fsnotify.Watcher // nil when there is none to be had
	changes <-chan fsnotify.Event
	lost    <-chan error // changes
	every   time.Duration
	err     error
}

// Watch watches a directory, and tells every so often that it is time to look as well.
// Where no watch is to be had, which [Watcher.Err] says, that is all it tells.
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

// Err returns why changes are not told.
func (w *Watcher) Err() error { return w.err }

// Await waits for a change, or until it is time to look all the same, and takes all
// changes that there are; false when ctx has ended.
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
		_ = w.inotify.Close() // its descriptor is gone, whatever it says
	}
}
