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
	raw, err := io.ReadAll(io.LimitReader(in, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	f.seen = fi
	if f.last, f.err = Decode(raw); f.err != nil {
		f.err = fmt.Errorf("%s: %w", f.path, f.err)
	}
	return f.last, f.err
}

// Watch returns a channel that gets a value after the file changed; changes in
// quick succession give one. It watches the file's directory, which must exist,
// until ctx ends, and then closes the channel.
func (f *File) Watch(ctx context.Context) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch checkpoint: %w", err)
	}
	if err := w.Add(filepath.Dir(f.path)); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch checkpoint: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-w.Errors:
				if !ok {
					return
				}
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				if filepath.Base(ev.Name) != filepath.Base(f.path) {
					continue
				}
			}
			select {
			case changed <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	return changed, nil
}
