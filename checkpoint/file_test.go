package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// replace writes a checkpoint of n entries as the kubelet does, by renaming.
func replace(t *testing.T, path string, n int) {
	t.Helper()
	raw, err := Encode(manyEntries(n))
	if err == nil {
		err = errors.Join(os.WriteFile(path+".new", raw, 0o600), os.Rename(path+".new", path))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileIsReadAgainOnlyOnChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	f := NewFile(path)
	if f.Path() != path {
		t.Errorf("path %s", f.Path())
	}
	if _, err := f.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("absent file: %v", err)
	}
	replace(t, path, 1)
	first, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Load(); err != nil || again != first {
		t.Errorf("an unchanged file was decoded again: %v", err)
	}
	replace(t, path, 2)
	if c, err := f.Load(); err != nil || len(c.Entries) != 2 {
		t.Errorf("after a change: %+v, %v", c, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if c, err := f.Load(); !errors.Is(err, os.ErrNotExist) || c != nil {
		t.Errorf("after its removal: %v, %v", c, err)
	}
}

func TestFileOfTheSameSizeAndTimeIsAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	f := NewFile(path)
	when := time.Now().Add(-time.Hour)
	for _, uid := range []string{"a", "b"} {
		raw, err := Encode([]Entry{{PodUID: uid}}, nil)
		if err == nil {
			err = errors.Join(os.WriteFile(path+uid, raw, 0o600), os.Chtimes(path+uid, when, when))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, uid := range []string{"a", "b"} {
		if err := os.Link(path+uid, path+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		if c, err := f.Load(); err != nil || len(c.Pod(uid)) != 1 {
			t.Errorf("%s: %+v, %v", uid, c, err)
		}
	}
}

func TestDamagedFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	f := NewFile(path)
	replace(t, path, 1)
	if _, err := f.Load(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		make func() error
		want error
	}{
		{"garbage", func() error { return os.WriteFile(path, []byte("garbage"), 0o600) }, ErrFormat},
		{"too large", func() error { return os.Truncate(path, MaxSize+1) }, ErrTooLarge},
		{"empty", func() error { return os.Truncate(path, 0) }, ErrFormat},
	} {
		if err := tc.make(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the first time decoded, the second time cached
			if c, err := f.Load(); !errors.Is(err, tc.want) || c != nil {
				t.Errorf("%s: %v, %v, want %v", tc.name, c, err, tc.want)
			}
		}
	}
	replace(t, path, 1)
	if c, err := f.Load(); err != nil || len(c.Entries) != 1 {
		t.Errorf("whole again: %v, %v", c, err)
	}
	if _, err := NewFile(t.TempDir()).Load(); err == nil {
		t.Error("a directory was read")
	}
}

func TestLoadWhileTheKubeletWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	replace(t, path, 1)
	f := NewFile(path)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 200 {
				if c, err := f.Load(); err != nil || len(c.Entries) == 0 {
					t.Errorf("Load = %v, %v", c, err)
					return
				}
			}
		})
	}
	for n := range 50 {
		replace(t, path, n+1)
	}
	all.Wait()
}

// awaitChange waits for a signal.
func awaitChange(t *testing.T, changed <-chan struct{}, what string) {
	t.Helper()
	select {
	case _, ok := <-changed:
		if !ok {
			t.Fatalf("%s: the channel was closed", what)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no signal after %s", what)
	}
}

func TestWatchTellsOfReplacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "checkpoint")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Dir(path), 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	changed, err := NewFile(path).Watch(ctx)
	must(err)
	replace(t, path, 1)
	awaitChange(t, changed, "the file's first appearance")
	replace(t, path, 2)
	awaitChange(t, changed, "its replacement")
	must(os.RemoveAll(filepath.Dir(path)))
	must(os.Mkdir(filepath.Dir(path), 0o755))
	awaitChange(t, changed, "the directory was made again")
	// The signals so far may be about the removal alone. Only a watch of the new
	// directory signals what follows.
	f := NewFile(path)
	replace(t, path, 3)
	for n := 4; ; n++ {
		awaitChange(t, changed, "the file in the new directory")
		if c, err := f.Load(); err == nil && len(c.Entries) >= 6 {
			break
		}
		replace(t, path, n)
	}
	cancel()
	for range changed { // drain until it is closed
	}
}

func TestWatchIgnoresOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last := filepath.Join(filepath.Dir(path), "last")
	err = errors.Join(w.Add(filepath.Dir(path)), os.WriteFile(path+"other", nil, 0o600), os.WriteFile(path, nil, 0o600), os.WriteFile(last, nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if !NewFile(path).await(t.Context(), w) {
		t.Fatal("no change seen")
	}
	// Events come in order, so the watcher has seen the file's creation by now.
	for ev := range w.Events {
		if ev.Name == path && ev.Has(fsnotify.Create) {
			t.Fatal("another file's event was taken for the file's")
		}
		if ev.Name == last {
			return
		}
	}
}

func TestWatchNeedsTheDirectory(t *testing.T) {
	if _, err := NewFile("/nonexistent/dir/file").Watch(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}
