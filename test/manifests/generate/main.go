// Command generate makes the kustomize base anew from the chart. It runs in the
// tree's root.
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
	files, err := manifests.Kustomization(".")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(manifests.Base, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(manifests.Base, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
