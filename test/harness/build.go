package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Versions of third-party programs; the modules' sums stand in
// test/toolchain/go.sum.
const (
	pluginsModule  = "github.com/containernetworking/plugins"
	pluginsVersion = "v1.9.1"
	lintModule     = "github.com/golangci/golangci-lint/v2/cmd/golangci-lint"
	lintVersion    = "v2.15.0"
)

// plugins are the reference plugins that tests use as delegates.
var plugins = []string{
	"main/bridge", "main/host-device", "main/loopback", "main/macvlan", "main/ptp",
	"ipam/host-local", "ipam/static", "meta/firewall", "meta/portmap", "meta/tuning",
}

// moduleRoot returns the directory of our go.mod, from anywhere below it.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if b, err := os.ReadFile(filepath.Join(d, "go.mod")); err == nil && strings.HasPrefix(string(b), "module github.com/manifold-cni/manifold\n") {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s is not in the module", dir)
}

// cacheDir returns the directory of programs built from a version: outside the
// tree, so that a clean clone finds what an earlier one has built.
func cacheDir(name, version string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "manifold", fmt.Sprintf("%s-%s-%s-%s", name, version, runtime.GOOS, runtime.GOARCH))
	return dir, os.MkdirAll(dir, 0o755)
}

// PluginDir returns the directory of the reference plugins, building those that
// are not there yet. It is safe for several processes at once.
func PluginDir() (string, error) {
	dir, err := cacheDir("cni-plugins", pluginsVersion)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(p))); err != nil {
			missing = append(missing, pluginsModule+"/plugins/"+p)
		}
	}
	return dir, buildTools(dir, missing)
}

// Linter returns the path of golangci-lint, built when it is not there yet.
func Linter() (string, error) {
	dir, err := cacheDir("golangci-lint", lintVersion)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "golangci-lint")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, buildTools(dir, []string{lintModule})
}

// buildTools builds packages of the toolchain's module into dir, under a lock,
// each by way of a temporary name.
func buildTools(dir string, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	for _, pkg := range packages {
		out := filepath.Join(dir, filepath.Base(pkg))
		if err := goBuild(filepath.Join(root, "test", "toolchain"), out+".new", pkg); err != nil {
			return err
		}
		if err := os.Rename(out+".new", out); err != nil {
			return err
		}
	}
	return nil
}

// goBuild builds a static, stripped program.
func goBuild(moduleDir, out, pkg string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = moduleDir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Program builds one of our packages, static and stripped, into dir.
func Program(dir, pkg string, flags ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	return goBuild(root, filepath.Join(dir, filepath.Base(pkg)), pkg, flags...)
}

// Programs builds our own programs, the scripted delegate and the careful loop
// into dir. With
// killPoints they die where the environment says, see internal/killpoint.
func Programs(dir string, killPoints bool) error {
	var flags []string
	if killPoints {
		flags = []string{"-tags", "killpoints"}
	}
	for _, pkg := range []string{"./cmd/manifold", "./cmd/manifold-agent", "./test/delegates/scripted", "./test/loop"} {
		if err := Program(dir, pkg, flags...); err != nil {
			return err
		}
	}
	return nil
}
