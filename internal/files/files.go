// Package files replaces files of the node so that a reader sees the old or the new
// one, and tells when to look at a directory again.
package files

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// Exists reports whether there is something at path that may be looked at.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Replace writes a file by renaming one written beside it: one that came from /tmp would
// keep that directory's SELinux type. A new file only its owner may read; an existing one
// keeps its mode.
func Replace(path string, content []byte) error {
	return renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// ReplaceLocked is [Replace] for the holder of the file's lock: it first removes what
// killed writes have left.
func ReplaceLocked(path string, content []byte) error {
	return errors.Join(RemoveUnfinished(path), Replace(path, content))
}

// RemoveUnfinished removes what killed writes of a file have left beside it: files of
// its name behind a dot, with a number. The caller holds a lock that everybody who
// writes the file takes, so that none of them belongs to a write still under way.
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
