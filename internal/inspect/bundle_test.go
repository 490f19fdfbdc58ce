package inspect

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/configfile"
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

// The bundle has the runtime's configurations, and only these, from a directory of any
// name.
func TestBundleReadsConfigurationsInADirectoryOfAnyName(t *testing.T) {
	for _, name := range []string{"net.d", "[open", "a[b]c"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"00-manifold.conflist", "10-default.conf", "10-default.conf.bak", "20-other.json", "manifold.kubeconfig"} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte("{}"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var archive bytes.Buffer
			b := &bundle{tar: tar.NewWriter(&archive)}
			if err := b.node(&configfile.Agent{CNIConfig: filepath.Join(dir, "00-manifold.conflist"), CNIDir: t.TempDir()}); err != nil {
				t.Fatal(err)
			}
			if err := b.tar.Close(); err != nil {
				t.Fatal(err)
			}
			var got []string
			r := tar.NewReader(&archive)
			for {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, filepath.Base(h.Name))
			}
			if want := []string{"00-manifold.conflist", "10-default.conf", "10-default.conf.bak", "20-other.json"}; !slices.Equal(got, want) {
				t.Errorf("the bundle has %q, want %q; problems: %s", got, want, b.problems.String())
			}
		})
	}
}

// A bundle is complete although something that is no regular file has the name of a
// configuration or of the log: reading it would block.
func TestBundlePastWhatBlocks(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "10-fifo.conf")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bundle{tar: tar.NewWriter(io.Discard)}
	if err := b.node(&configfile.Agent{CNIConfig: filepath.Join(dir, "00-manifold.conflist"), CNIDir: dir}); err != nil {
		t.Fatal(err)
	}
	if got := b.problems.String(); !strings.Contains(got, fifo+": not a regular file") {
		t.Errorf("%q", got)
	}
}
