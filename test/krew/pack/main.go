// Command pack packs kubectl-manifold for krew, see package krew. Run it in the tree's
// root.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/manifold-cni/manifold/test/krew"
)

func main() {
	release := flag.String("release", "v0.0.0", "`version` of the plugin, vX.Y.Z")
	url := flag.String("url", "", "`address` where the archives will be published")
	out := flag.String("out", "bin/krew", "`directory` to write into")
	flag.Parse()
	if *url == "" {
		fmt.Fprintln(os.Stderr, "pack: -url is missing: krew downloads the archives from there")
		os.Exit(2)
	}
	if err := krew.Pack(".", *out, *release, *url, krew.Platforms); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}
