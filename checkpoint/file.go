package checkpoint

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// File is a checkpoint on disk. It is safe for concurrent use.
type File struct {
	path string

	mu   sync.Mutex
	seen os.FileInfo
	last *Checkpoint
	err  error
}

// NewFile returns the checkpoint at path, which need not exist yet.
func NewFile(path string) *File { return &File{path: path} }

// Path returns the file's path.
func (f *File) Path() string { return f.path }

// Load returns the file's content, decoded again only when the file is another
// one, or of another size or time, than at the last call. The kubelet replaces
// the file by renaming, so a read never sees half of it. An absent file is
// os.ErrNotExist; a damaged one gives the error of [Decode] until it changes.
// The result is shared and must not be changed.
func (f *File) Load() (*Checkpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	if f.seen != nil && os.SameFile(f.seen, fi) && f.seen.Size() == fi.Size() && f.seen.ModTime().Equal(fi.ModTime()) {
		return f.last, f.err
	}
	if fi.Size() > MaxSize {
		f.last, f.err = nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, fi.Size(), MaxSize)
	} else {
		raw, err := io.ReadAll(io.LimitReader(in, MaxSize+1))
		if err != nil {
			return nil, fmt.Errorf("read checkpoint: %w", err)
		}
		f.last, f.err = Decode(raw)
	}
	f.seen = fi
	if f.err != nil {
		f.err = fmt.Errorf("%s: %w", f.path, f.err)
	}
	return f.last, f.err
}

// Watch returns a channel that gets a value after the file changed; changes in
// quick succession give one. It watches the file's directory, which must exist,
// and the one above it, so that a directory that is removed and made again goes
// on being watched. When ctx ends, it closes the channel.
func (f *File) Watch(ctx context.Context) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch checkpoint: %w", err)
	}
	dir := filepath.Dir(f.path)
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := w.Add(d); err != nil {
			w.Close()
			return nil, fmt.Errorf("watch checkpoint: %w", err)
		}
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		defer w.Close()
		for f.await(ctx, w) {
			select {
			case changed <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	return changed, nil
}

// await returns true when the file may have changed, false when ctx has ended.
func (f *File) await(ctx context.Context, w *fsnotify.Watcher) bool {
	path := filepath.Clean(f.path)
	dir := filepath.Dir(path)
	for {
		select {
		case <-ctx.Done():
			return false
		case _, ok := <-w.Errors:
			return ok // events may have been lost
		case ev, ok := <-w.Events:
			if !ok {
				return false
			}
			switch filepath.Clean(ev.Name) {
			case path:
				return true
			case dir:
				// Made again, perhaps with the file in it already. Where it is gone
				// by now, its next creation brings us here once more.
				if ev.Has(fsnotify.Create) && w.Add(dir) == nil {
					return true
				}
			}
		}
	}
}
