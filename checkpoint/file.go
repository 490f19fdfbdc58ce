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
type File struct{ content content[*Checkpoint] }

// NewFile returns the checkpoint at path, which need not exist yet.
func NewFile(path string) *File {
	return &File{content[*Checkpoint]{path: path, decode: Decode}}
}

// Path returns the file's path.
func (f *File) Path() string { return f.content.path }

// Load returns the file's content. It decodes the file again only if inode, size or
// modification time differ from the last call. The kubelet replaces the file by
// renaming, so a read never sees half of one. Load returns os.ErrNotExist for an absent
// file, and for a damaged one the error of [Decode] until the file changes. The result
// is shared: callers must not modify it.
func (f *File) Load() (*Checkpoint, error) { return f.content.load() }

// content caches a file's decoded content until the file changes.
type content[T any] struct {
	path   string
	decode func([]byte) (T, error)

	mu   sync.Mutex
	seen os.FileInfo
	last T
	err  error
}

// load implements [File.Load].
func (c *content[T]) load() (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var none T
	in, err := os.Open(c.path)
	if err != nil {
		return none, fmt.Errorf("open checkpoint: %w", err)
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return none, fmt.Errorf("open checkpoint: %w", err)
	}
	if c.seen != nil && os.SameFile(c.seen, fi) && c.seen.Size() == fi.Size() && c.seen.ModTime().Equal(fi.ModTime()) {
		return c.last, c.err
	}
	if fi.Size() > MaxSize {
		c.last, c.err = none, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, fi.Size(), MaxSize)
	} else {
		raw, err := io.ReadAll(io.LimitReader(in, MaxSize+1))
		if err != nil {
			return none, fmt.Errorf("read checkpoint: %w", err)
		}
		c.last, c.err = c.decode(raw)
	}
	c.seen = fi
	if c.err != nil {
		c.err = fmt.Errorf("%s: %w", c.path, c.err)
	}
	return c.last, c.err
}

// Watch returns a channel that receives a value after the file changed; changes in
// quick succession are merged into one. Watch observes the file's directory, which must
// exist, and the parent of that directory, so that it keeps working when the directory
// is removed and created again. The channel is closed when ctx ends.
func (f *File) Watch(ctx context.Context) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch checkpoint: %w", err)
	}
	dir := filepath.Dir(f.Path())
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
			default: // a value is already pending
			}
		}
	}()
	return changed, nil
}

// await returns true when the file may have changed, and false when ctx has ended.
func (f *File) await(ctx context.Context, w *fsnotify.Watcher) bool {
	path := filepath.Clean(f.Path())
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
				// The directory was created again, perhaps with the file already in it.
				// If it is gone by now, its next creation leads here again.
				if ev.Has(fsnotify.Create) && w.Add(dir) == nil {
					return true
				}
			}
		}
	}
}
