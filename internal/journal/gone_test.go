package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// A path at which there is another network namespace by now does not make the sandbox
// live on. What an agent in a container may see there instead says nothing.
func TestGoneWhenAnotherNamespaceHasThePath(t *testing.T) {
	pod, err := harness.NewNetNS("pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pod.Delete() })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(pod.Path, link); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(pod.Path, &st); err != nil {
		t.Fatal(err)
	}
	its, anothers := fmt.Sprintf("%d@1.000000000", st.Ino), fmt.Sprintf("%d@1.000000000", st.Ino+1)
	for name, c := range map[string]struct {
		path, file string
		gone       bool
	}{
		"its own":                   {pod.Path, its, false},
		"another's":                 {pod.Path, anothers, true},
		"unknown":                   {pod.Path, "", false},
		"damaged":                   {pod.Path, "x", false},
		"not mounted here":          {file, anothers, false},
		"of another process's view": {"/proc/self/ns/net", anothers, false},
		"behind a link":             {link, anothers, false},
	} {
		e := &Entry{Boot: bootID(), Plan: &plan.Plan{NetNS: c.path, NetNSFile: c.file}}
		if got := e.Gone(); (got != "") != c.gone {
			t.Errorf("%s: %q", name, got)
		}
	}
}
