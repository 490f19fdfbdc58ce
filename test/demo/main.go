// Command demo shows Manifold's main job on any Linux machine with Go: no cluster,
// no special hardware, and no root where user namespaces are allowed.
//
// It sets up a node in namespaces: a fake kubelet with real gRPC APIs and allocated
// devices, a small API server, the agent, the plugin, and real delegates. A pod
// gets its networks, is killed in mid-ADD, is deleted, and gets its networks again
// with no agent running. The demo checks every statement that it prints and fails
// on the first that does not hold.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/manifold-cni/manifold/test/harness"
)

// dirEnv passes the directory of built programs to the process inside the
// namespaces.
const dirEnv = "MANIFOLD_DEMO_DIR"

func main() {
	code, err := harness.Enter(build)
	if err == nil && code < 0 {
		code = 0
		err = story(os.Getenv(dirEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		code = 1
	}
	os.Exit(code)
}

// build builds all programs outside the namespaces, where modules can be fetched.
func build() error {
	fmt.Println("Building the programs and the reference plugins (once) ...")
	dir, err := os.MkdirTemp("", "manifold-demo-")
	if err != nil {
		return err
	}
	plugins, err := harness.PluginDir()
	if err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if err := harness.Programs(bin, true); err != nil {
		return err
	}
	entries, err := os.ReadDir(plugins)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name()[0] == '.' {
			continue
		}
		if err := os.Symlink(filepath.Join(plugins, e.Name()), filepath.Join(bin, e.Name())); err != nil {
			return err
		}
	}
	return os.Setenv(dirEnv, dir)
}

// story runs the parts of the demo in order.
func story(dir string) (err error) {
	defer os.RemoveAll(dir)
	n, err := newNode(dir)
	if err != nil {
		return err
	}
	defer n.stop()
	for _, part := range []struct {
		title string
		do    func() error
	}{
		{"A pod selects three networks besides the default one; two of them use devices, one of each container.", n.admitPod},
		{"The plan, with the reason for each device:", n.showPlan},
		{"ADD: the plugin runs the delegates and verifies each interface.", n.attach},
		{"network-status, as published in one PATCH:", n.showStatus},
		{"DEL: everything is released.", n.detach},
		{"ADD again, killed by SIGKILL after the second delegate; then the runtime's DEL.", n.killed},
		{"The agent is stopped; the plugin makes the plan itself.", n.withoutAgent},
	} {
		fmt.Printf("\n== %s\n", part.title)
		if err := part.do(); err != nil {
			return err
		}
	}
	fmt.Println("\nEvery statement holds.")
	return nil
}
