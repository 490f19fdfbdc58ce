// Package kubectl tests the program kubectl-manifold as people run it: on
// manifests, on journals written by the real packages, and on a node whose pods the
// real plugin attached.
package kubectl

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/manifold-cni/manifold/test/harness"
)

var update = flag.Bool("update", false, "rewrite the reference page and the scripts' expectations")

// Directories of programs, built once for all tests, outside the namespaces.
var (
	programDir = harness.ProgramDir()
	pluginDir  string
)

func TestMain(m *testing.M) {
	var err error
	if pluginDir, err = harness.PluginDir(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builds = append(builds, func() error {
		return errors.Join(os.MkdirAll(programDir, 0o755), harness.Programs(programDir, false), harness.Build(programDir, "./cmd/kubectl-manifold"))
	})
	harness.Main(m, builds...)
}

// builds are built outside the namespaces, before the tests.
var builds []func() error

// TestScripts checks the output for manifests and for a node.
func TestScripts(t *testing.T) { runScripts(t, filepath.Join("testdata", "script")) }

// runScripts runs the scripts of a directory.
func runScripts(t *testing.T, dir string) {
	t.Helper()
	testscript.RunT(serial{t}, testscript.Params{
		Dir: dir, UpdateScripts: *update, Cmds: commands,
		Setup: func(env *testscript.Env) error {
			env.Values["node"] = &node{}
			env.Setenv("PATH", programDir+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
	})
}

// run runs the program and returns its exit status and output.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(programDir, "kubectl-manifold"), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

func TestReferencePageIsTheCommands(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "kubectl.md")
	status, text, stderr := run(t, "reference")
	if status != 0 {
		t.Fatal(stderr)
	}
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != text {
		t.Error("docs/kubectl.md is out of date; run: go test ./test/kubectl -update")
	}
}

func TestManualPagesAreTheCommands(t *testing.T) {
	dir := filepath.Join("..", "..", "docs", "man")
	made := t.TempDir()
	if *update {
		made = dir
	}
	if status, _, stderr := run(t, "reference", "--manuals", made); status != 0 {
		t.Fatal(stderr)
	}
	pages, have := names(t, made), names(t, dir)
	if !slices.Equal(pages, have) {
		t.Fatalf("docs/man has %v, the commands have %v; run: go test ./test/kubectl -update", have, pages)
	}
	for _, name := range pages {
		want, err := os.ReadFile(filepath.Join(made, name))
		if err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(page, want) {
			t.Errorf("docs/man/%s is out of date; run: go test ./test/kubectl -update", name)
		}
	}
}

// names returns the sorted names of the files in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
