package harness

import (
	"os"
	"path/filepath"
	"testing"
)

// Place is a test's directory, with helpers that fail the test on errors. Create it
// with [NewPlace]; a test's own fixture embeds it.
type Place struct {
	T   testing.TB
	Dir string
}

// NewPlace creates a directory that is removed with the test.
func NewPlace(tb testing.TB) Place {
	tb.Helper()
	return Place{tb, tb.TempDir()}
}

// Path returns the path of a name in the directory.
func (p *Place) Path(elem string) string { return filepath.Join(p.Dir, elem) }

// Must fails the test at once if there is an error.
func (p *Place) Must(err error) {
	p.T.Helper()
	if err != nil {
		p.T.Fatal(err)
	}
}

// File writes a file in the directory, with mode 0600.
func (p *Place) File(name, content string) {
	p.T.Helper()
	p.Must(os.WriteFile(p.Path(name), []byte(content), 0o600))
}
