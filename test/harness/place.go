package harness

import (
	"os"
	"path/filepath"
	"testing"
)

// Place is a directory of a test, which ends where something there fails. Begin with
// [NewPlace]; a test's own fixture embeds it.
type Place struct {
	T   testing.TB
	Dir string
}

// NewPlace makes a directory that goes with the test.
func NewPlace(tb testing.TB) Place {
	tb.Helper()
	return Place{tb, tb.TempDir()}
}

// Path returns the path of what has that name in the directory.
func (p *Place) Path(elem string) string { return filepath.Join(p.Dir, elem) }

// Must ends the test at an error.
func (p *Place) Must(err error) {
	p.T.Helper()
	if err != nil {
		p.T.Fatal(err)
	}
}

// File writes a file into the directory, mode 0600.
func (p *Place) File(name, content string) {
	p.T.Helper()
	p.Must(os.WriteFile(p.Path(name), []byte(content), 0o600))
}
