// Package files replaces files on the node atomically, so that a reader sees the old or
// the new content, reads them without ever waiting, and tells when to look at a directory
// again.
package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Exists reports whether path exists and its status can be read.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// OpenRegular opens a file for reading, and refuses one that is not regular. It serves in
// directories to which other programs write: opening a FIFO would wait for its writer,
// and a device may never end.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadRegular reads a file as [OpenRegular] opens it.
func ReadRegular(path string) ([]byte, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	return io.ReadAll(f)
}

// Replace writes a file by renaming a new one over it. The new file is written in the
// same directory: one from /tmp would keep that directory's SELinux type. A new file is
// readable by its owner alone; an existing one keeps its mode.
func Replace(path string, content []byte) error {
	return renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// ReplaceLocked is [Replace] for the holder of the file's lock. It first removes what
// killed writers have left.
func ReplaceLocked(path string, content []byte) error {
	return errors.Join(RemoveUnfinished(path), Replace(path, content))
}

// RemoveUnfinished removes the temporary files that killed writers of path have left
// beside it: a dot, the file's name and a number. The caller holds a lock that every
// writer of the file takes, so none of these files belongs to a write that is under
// way.
func RemoveUnfinished(path string) error {
	dir, name := filepath.Split(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "."+name)
		if _, err := strconv.ParseUint(number, 10, 64); !ok || err != nil {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
