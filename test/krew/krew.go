// Package krew packs kubectl-manifold for krew, kubectl's plugin manager. For each
// platform it makes an archive with the program, its manual pages and the license; the
// plugin manifest names the archives and their checksums. The same tree gives the same
// archives.
package krew

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// program is the name of the plugin's program and of its package.
const program = "kubectl-manifold"

// Platform is a platform that the program runs on.
type Platform struct{ OS, Arch string }

// Platforms are all supported platforms. The program reads the node that it runs on,
// which is Linux. Through the API server it could run elsewhere, but is not built for
// that.
var Platforms = []Platform{{"linux", "amd64"}, {"linux", "arm64"}}

// Manifest is the part of krew's plugin manifest that we use.
type Manifest struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
}

// Metadata names the plugin.
type Metadata struct {
	Name string `json:"name"`
}

// Spec is what krew shows and installs.
type Spec struct {
	Version          string    `json:"version"`
	Homepage         string    `json:"homepage"`
	ShortDescription string    `json:"shortDescription"`
	Description      string    `json:"description"`
	Caveats          string    `json:"caveats"`
	Platforms        []Archive `json:"platforms"`
}

// Archive is the archive of one platform.
type Archive struct {
	Selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	} `json:"selector"`
	URI    string `json:"uri"`
	SHA256 string `json:"sha256"`
	Bin    string `json:"bin"`
}

// Pack builds the program of the tree at root for each platform, and writes the
// archives and the manifest manifold.yaml to out. url is the address where the archives
// will be published.
func Pack(root, out, release, url string, platforms []Platform) error {
	m := Manifest{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin", Metadata: Metadata{"manifold"},
		Spec: Spec{
			Version: release, Homepage: "https://github.com/manifold-cni/manifold",
			ShortDescription: "Show pods' networks and the devices behind them",
			Description: "Shows which pod has which network on which device, and whether that was verified;\n" +
				"explains why a pod gets its networks or hangs; finds mistakes in definitions and pods;\n" +
				"says what is broken on a node and how to fix it.\n",
			Caveats: "The plugin asks nodes through the API server: bind the role manifold-view in the\nagents' namespace to its users.\n",
		},
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, p := range platforms {
		raw, err := archive(root, release, p)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", p.OS, p.Arch, err)
		}
		name := fmt.Sprintf("%s-%s-%s.tar.gz", program, p.OS, p.Arch)
		if err := os.WriteFile(filepath.Join(out, name), raw, 0o644); err != nil {
			return err
		}
		sum := sha256.Sum256(raw)
		a := Archive{URI: url + "/" + name, SHA256: hex.EncodeToString(sum[:]), Bin: program}
		a.Selector.MatchLabels = map[string]string{"os": p.OS, "arch": p.Arch}
		m.Spec.Platforms = append(m.Spec.Platforms, a)
	}
	raw, err := yaml.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "manifold.yaml"), raw, 0o644)
}

// archive returns the archive of one platform.
func archive(root, release string, p Platform) ([]byte, error) {
	dir, err := os.MkdirTemp("", "manifold-krew-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.release="+release, "-o", filepath.Join(dir, program), "./cmd/"+program)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build: %w\n%s", err, text)
	}
	manuals, err := filepath.Glob(filepath.Join(root, "docs", "man", "*.1"))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	w := tar.NewWriter(zip)
	err = errors.Join(add(w, filepath.Join(dir, program), program, 0o755), add(w, filepath.Join(root, "LICENSE"), "LICENSE", 0o644))
	for _, m := range manuals {
		err = errors.Join(err, add(w, m, "man/"+filepath.Base(m), 0o644))
	}
	err = errors.Join(err, w.Close(), zip.Close())
	return out.Bytes(), err
}

// add adds a file to an archive without its owner and modification time.
func add(w *tar.Writer, path, name string, mode int64) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(raw)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}
