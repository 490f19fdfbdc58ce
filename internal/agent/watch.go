package agent

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lookEvery is the time between two looks at a watched directory of which nothing is
// told. A change is told at once, but a node that has no inotify instance left gives no
// watch, and one on a directory that is made anew tells nothing of the new one.
const lookEvery = 10 * time.Second

// watch tells when to look at a directory.
type watch struct {
	inotify *fsnotify.Watcher // nil when there is none to be had
	changes <-chan fsnotify.Event
	lost    <-chan error // changes
	every   time.Duration
}

// watchDir watches a directory. The watch serves with an error too: then all that it
// tells is that it is time to look.
func watchDir(dir string, every time.Duration) (*watch, error) {
	w := &watch{every: every}
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return w, err
	}
	w.inotify, w.changes, w.lost = inotify, inotify.Events, inotify.Errors
	return w, inotify.Add(dir)
}

// await waits for a change, or until it is time to look all the same, and takes all
// changes that there are; false when ctx has ended.
func (w *watch) await(ctx context.Context) bool {
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

// close ends the watch.
func (w *watch) close() {
	if w.inotify != nil {
		_ = w.inotify.Close() // its descriptor is gone, whatever it says
	}
}
