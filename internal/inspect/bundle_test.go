package inspect

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A long log keeps its end, without the first line of it: that line may be the end of a
// secret whose key was cut off.
func TestBundleCutsALogBetweenLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	const end = secret + "\nthe last line\n"
	text := "password=" + secret + "\n" + strings.Repeat("x", maxBundled-len(end)) + end
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	b := &bundle{tar: tar.NewWriter(&archive)}
	if err := b.file("log.txt", file); err != nil {
		t.Fatal(err)
	}
	if err := b.tar.Close(); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&archive)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "the last line\n" {
		t.Errorf("%.80q, %v", got, err)
	}
}
