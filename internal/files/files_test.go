package files

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A file that may block its reader is refused, whoever put it there. A link to a regular
// file is read.
func TestReadRegular(t *testing.T) {
	dir := t.TempDir()
	fifo, file, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.WriteFile(file, []byte("text"), 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if raw, err := ReadRegular(path); err != nil || string(raw) != "text" {
			t.Errorf("%s: %q, %v", path, raw, err)
		}
	}
	for _, path := range []string{fifo, dir, "/dev/zero"} {
		if _, err := ReadRegular(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := ReadRegular(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// The next write removes the leftovers of a killed one. Files of other names stay, and
// so does the mode of a replaced file.
func TestReplaceLocked(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"conf", ".conf12", ".conf6340244231178033926", ".conf", ".conf-x", ".other1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "conf")
	if err := ReplaceLocked(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	fi, err2 := os.Stat(path)
	if err != nil || err2 != nil || string(raw) != "new" || fi.Mode().Perm() != 0o644 {
		t.Errorf("%q, %v, %v, %v", raw, fi.Mode(), err, err2)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	if err := ReplaceLocked(fresh, nil); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(fresh); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("a new file: %v %v", fi.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".conf", ".conf-x", ".other1", "conf"}; !slices.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w := Watch(dir, time.Hour)
	defer w.Close()
	if errors.Is(w.Err(), syscall.EMFILE) {
		t.Skipf("other programs have all inotify instances of this machine: %v", w.Err())
	}
	if err := os.WriteFile(filepath.Join(dir, "conf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if w.Err() != nil || !w.Await(t.Context()) {
		t.Errorf("a change is not notified: %v", w.Err())
	}
	absent := Watch(filepath.Join(dir, "absent"), time.Millisecond)
	defer absent.Close()
	if absent.Err() == nil || !absent.Await(t.Context()) {
		t.Errorf("Await does not return without a watch: %v", absent.Err())
	}
}
