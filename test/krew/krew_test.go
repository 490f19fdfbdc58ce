package krew_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/test/krew"
)

// root is the root of the tree.
const root = "../.."

// TestPackedAsKrewInstalls does with the manifest what krew does: it takes the archive
// of its platform, compares the checksum, unpacks the archive and runs the program.
func TestPackedAsKrewInstalls(t *testing.T) {
	out := t.TempDir()
	platforms := []krew.Platform{{OS: runtime.GOOS, Arch: runtime.GOARCH}}
	if err := krew.Pack(root, out, "v1.2.3", "https://example.invalid/v1.2.3", platforms); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "manifold.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var m krew.Manifest
	if err := yaml.UnmarshalStrict(raw, &m); err != nil {
		t.Fatal(err)
	}
	if m.Metadata.Name != "manifold" || m.Spec.Version != "v1.2.3" || len(m.Spec.Platforms) != 1 || len(m.Spec.ShortDescription) > 50 {
		t.Fatalf("%+v", m)
	}
	a := m.Spec.Platforms[0]
	archive := published(t, out, &a)
	if text, err := exec.Command("tar", "-xzf", archive, "-C", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	text, err := exec.Command(filepath.Join(out, a.Bin), "--version").Output()
	if err != nil || !strings.Contains(string(text), "v1.2.3") {
		t.Errorf("%s %v", text, err)
	}
	for _, file := range []string{"LICENSE", "man/kubectl-manifold-explain.1"} {
		if _, err := os.Stat(filepath.Join(out, file)); err != nil {
			t.Error(err)
		}
	}
}

// published returns the path of an archive, and fails unless it is for this platform
// and has the manifest's checksum.
func published(t *testing.T, dir string, a *krew.Archive) string {
	t.Helper()
	name, ok := strings.CutPrefix(a.URI, "https://example.invalid/v1.2.3/")
	if !ok || a.Selector.MatchLabels["os"] != runtime.GOOS || a.Selector.MatchLabels["arch"] != runtime.GOARCH {
		t.Fatalf("%+v", a)
	}
	path := filepath.Join(dir, name)
	packed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(packed); hex.EncodeToString(sum[:]) != a.SHA256 {
		t.Errorf("the checksum in the manifest is not that of %s", name)
	}
	return path
}
