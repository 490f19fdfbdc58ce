// Package image tests the archive of the image: it is what the Dockerfile says, and
// building it twice gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// root is the root of the tree.
const root = "../.."

// stamps are the values that builds put into the image.
var stamps = []string{"-release", "v9.8.7", "-revision", "0123456789abcdef", "-created", "1700000000", "-name", "registry.example/manifold:v9.8.7"}

// archive builds the image from the tree at dir.
func archive(t *testing.T, dir, arches string) []byte {
	t.Helper()
	program, file := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "image.tar")
	for _, cmd := range []*exec.Cmd{
		exec.Command("go", "build", "-C", filepath.Join(dir, "deploy/image"), "-o", program, "."),
		exec.Command(program, append(append([]string{"archive"}, stamps...), "-arch", arches, file)...),
	} {
		if !strings.HasSuffix(cmd.Path, "go") {
			cmd.Dir = dir
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// untar returns the regular files of an archive and their headers.
func untar(t *testing.T, raw []byte) (map[string][]byte, map[string]*tar.Header) {
	t.Helper()
	files, headers := map[string][]byte{}, map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if files[h.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
			headers[h.Name] = h
		}
	}
}

// descriptor is a reference from one OCI document to another.
type descriptor struct {
	MediaType   string
	Digest      string
	Annotations map[string]string
	Platform    struct{ OS, Architecture string }
}

// blob decodes the document that d refers to into into, unless that is nil, and fails
// unless the content has d's digest.
func blob(t *testing.T, layout map[string][]byte, d descriptor, into any) []byte {
	t.Helper()
	raw := layout["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if sum := sha256.Sum256(raw); "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
		t.Fatalf("blob %s has another digest: %x", d.Digest, sum)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
	return raw
}

// config is the part of an image's configuration that the Dockerfile sets.
type config struct {
	Architecture string
	Config       struct {
		User       string
		Entrypoint []string
		Cmd        []string
		Labels     map[string]string
	}
}

// TestArchive proves that the archive holds one image with the given name and content.
func TestArchive(t *testing.T) {
	layout, _ := untar(t, archive(t, root, runtime.GOARCH))
	var outer, index struct{ Manifests []descriptor }
	if err := json.Unmarshal(layout["index.json"], &outer); err != nil || len(outer.Manifests) != 1 {
		t.Fatalf("%v: %s", err, layout["index.json"])
	}
	if name := outer.Manifests[0].Annotations["io.containerd.image.name"]; name != "registry.example/manifold:v9.8.7" {
		t.Errorf("the image's name is %q", name)
	}
	blob(t, layout, outer.Manifests[0], &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Platform.Architecture != runtime.GOARCH {
		t.Fatalf("%+v", index)
	}
	imageIsRight(t, layout, index.Manifests[0])
}

// imageIsRight checks an image of one layer in an OCI layout.
func imageIsRight(t *testing.T, layout map[string][]byte, d descriptor) {
	t.Helper()
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	blob(t, layout, d, &manifest)
	var conf config
	blob(t, layout, manifest.Config, &conf)
	asTheDockerfile(t, &conf)
	zipped, err := gzip.NewReader(bytes.NewReader(blob(t, layout, manifest.Layers[0], nil)))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(zipped)
	if err != nil {
		t.Fatal(err)
	}
	filesAreRight(t, layer)
}

// filesAreRight checks the files in the image.
func filesAreRight(t *testing.T, layer []byte) {
	t.Helper()
	files, headers := untar(t, layer)
	dir := t.TempDir()
	for name, content := range files {
		if h := headers[name]; h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1700000000 || h.Mode&0o022 != 0 {
			t.Errorf("%s: %+v", name, h)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, os.FileMode(headers[name].Mode)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(filepath.Join(dir, "manifold-agent"), "version").Output(); err != nil || string(out) != "v9.8.7\n" {
		t.Errorf("the agent's version is %q: %v", out, err)
	}
	bomIsRight(t, files)
}

// bomIsRight checks the image's bill of materials.
func bomIsRight(t *testing.T, files map[string][]byte) {
	t.Helper()
	var bom struct {
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(files["manifold.cdx.json"], &bom); err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, c := range bom.Components {
		listed[c.Name] = c.Version
	}
	for name := range files {
		if name != "manifold.cdx.json" && listed[name] != "v9.8.7" {
			t.Errorf("program %s is listed with version %q", name, listed[name])
		}
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"github.com/containernetworking/cni", "k8s.io/client-go", "google.golang.org/grpc"} {
		if !strings.Contains(string(mod), module+" "+listed[module]+"\n") {
			t.Errorf("module %s is listed with version %q", module, listed[module])
		}
	}
}

// asTheDockerfile fails unless the image's configuration is that of the Dockerfile's
// last stage.
func asTheDockerfile(t *testing.T, c *config) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, last, _ := strings.Cut(string(text), "FROM scratch\n")
	last = strings.NewReplacer("${RELEASE}", "v9.8.7", "${REVISION}", "0123456789abcdef").Replace(last)
	labels := map[string]string{}
	for _, m := range regexp.MustCompile(`(org\.opencontainers\.image\.\w+)="([^"]*)"`).FindAllStringSubmatch(last, -1) {
		labels[m[1]] = m[2]
	}
	have, err := json.Marshal(c.Config.Labels)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(labels)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("labels %s\nwant those of the Dockerfile: %s", have, want)
	}
	entry, err := json.Marshal(c.Config.Entrypoint)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := json.Marshal(c.Config.Cmd)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"\nENTRYPOINT " + string(entry) + "\n", "\nCMD " + string(cmd) + "\n", "\nUSER " + c.Config.User + "\n"} {
		if !strings.Contains(last, line) {
			t.Errorf("the Dockerfile has no line %q", line)
		}
	}
}

// TestTwoBuildsAreEqual proves that a build from another checkout, in another place and
// with another GOAMD64, gives the same bytes.
func TestTwoBuildsAreEqual(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "checkout")
	for _, part := range []string{"go.mod", "go.sum", "cmd", "internal", "checkpoint", "netattach", "podresources", "sriov", "deploy/image"} {
		to := filepath.Join(elsewhere, part)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-r", filepath.Join(root, part), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	here := archive(t, root, "amd64,arm64")
	t.Setenv("GOAMD64", "v3")
	there := archive(t, elsewhere, "amd64,arm64")
	if !bytes.Equal(here, there) {
		t.Errorf("the two builds differ; they have %d and %d bytes", len(here), len(there))
	}
}
