// Command toolchain builds a pinned third-party program, once per version and machine,
// and prints its path: the program for "golangci-lint", "helm", "kustomize" and
// "promtool", and a directory of programs for "plugins" (the CNI reference plugins),
// "control-plane" (etcd and the Kubernetes control plane), "node" and "node-1.34"
// (kubelet, containerd and runc).
package main

import (
	"fmt"
	"os"

	"github.com/manifold-cni/manifold/test/harness"
)

func main() {
	tools := map[string]func() (string, error){
		"golangci-lint": harness.Linter, "plugins": harness.PluginDir,
		"control-plane": controlPlane, "node": node(harness.NewestKubelet), "node-1.34": node(harness.OlderKubelet),
		"helm": harness.Helm, "kustomize": harness.Kustomize, "promtool": harness.Promtool,
	}
	if len(os.Args) != 2 || tools[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: toolchain golangci-lint | plugins | control-plane | node | node-1.34 | helm | kustomize | promtool")
		os.Exit(2)
	}
	path, err := tools[os.Args[1]]()
	if err != nil {
		fmt.Fprintln(os.Stderr, "toolchain:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

func controlPlane() (string, error) {
	if dir, err := harness.ControlPlane(); err != nil {
		return dir, err
	}
	return harness.Controllers()
}

func node(line string) func() (string, error) {
	return func() (string, error) { return harness.NodePrograms(line) }
}
