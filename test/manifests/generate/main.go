// Command generate regenerates the kustomize bases from the chart. It must run in
// the root of the source tree.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/manifold-cni/manifold/test/manifests"
)

func main() {
	if err := generate(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func generate() error {
	files, err := manifests.Kustomizations(".")
	if err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(manifests.Bases, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
