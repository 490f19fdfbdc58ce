package harness

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// plugins are the reference plugins that tests use as delegates.
var plugins = []string{
	"main/bridge", "main/host-device", "main/loopback", "main/macvlan", "main/ptp",
	"ipam/host-local", "ipam/static", "meta/firewall", "meta/portmap", "meta/tuning",
}

// ModuleRoot returns the directory of our go.mod, found from any directory below it.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if b, err := os.ReadFile(filepath.Join(d, "go.mod")); err == nil && strings.HasPrefix(string(b), "module github.com/manifold-cni/manifold\n") {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s is not in Manifold's module", dir)
}

// ProgramDir returns the directory for the programs that a test package builds from
// this checkout. Each package has its own, because tests of packages run concurrently.
// The path stays the same when a test binary runs itself again.
func ProgramDir() string {
	dir, err := os.Getwd()
	if err != nil {
		dir = "." // then all packages share one directory
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("manifold-programs-%d-%08x", os.Getuid(), crc32.ChecksumIEEE([]byte(dir))))
}

// cacheDir returns the directory for programs built from a version. It is outside the
// tree, so that a clean clone reuses what an earlier clone has built.
func cacheDir(name, version string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "manifold", fmt.Sprintf("%s-%s-%s-%s", name, version, runtime.GOOS, runtime.GOARCH))
	return dir, os.MkdirAll(dir, 0o755)
}

// PluginDir returns the directory of the reference plugins, after building those that
// are missing. Several processes may call it at once.
func PluginDir() (string, error) {
	dir, err := cacheDir("cni-plugins", pluginsVersion)
	if err != nil {
		return "", err
	}
	var tools []tool
	for _, p := range plugins {
		tools = append(tools, tool{name: filepath.Base(p), pkg: pluginsModule + "/plugins/" + p})
	}
	return dir, buildTools(dir, tools...)
}

// ControlPlane returns the directory of etcd and kube-apiserver, after building them if
// they are missing, which takes some minutes.
func ControlPlane() (string, error) {
	dir, err := controlPlaneDir()
	if err != nil {
		return "", err
	}
	return dir, buildTools(dir,
		tool{name: "etcd", module: "etcd", pkg: "go.etcd.io/etcd/server/v3"},
		controlPlane("kube-apiserver"),
	)
}

// Controllers builds, if missing, the programs that turn an API server into a cluster:
// kube-scheduler, kube-controller-manager and kubectl. It returns their directory,
// which is that of [ControlPlane].
func Controllers() (string, error) {
	dir, err := controlPlaneDir()
	if err != nil {
		return "", err
	}
	return dir, buildTools(dir, controlPlane("kube-scheduler"), controlPlane("kube-controller-manager"), controlPlane("kubectl"))
}

func controlPlaneDir() (string, error) {
	return cacheDir("control-plane", kubernetesVersion+"-etcd-"+etcdVersion)
}

// NodePrograms returns the directory of a node's programs: the kubelet of a release
// line, containerd with its shim and ctr, and runc. Building runc needs libseccomp's
// headers and pkg-config (Debian: libseccomp-dev and pkg-config).
func NodePrograms(line string) (string, error) {
	kubelet, ok := kubelets[line]
	if !ok {
		return "", fmt.Errorf("no kubelet of release line %q, only of %v", line, slices.Sorted(maps.Keys(kubelets)))
	}
	dir, err := cacheDir("node", strings.Join([]string{kubelet.version, "containerd", containerdVersion, "runc", runcVersion}, "-"))
	if err != nil {
		return "", err
	}
	tools := []tool{
		{name: "runc", module: "runc", pkg: "github.com/opencontainers/runc", tags: "seccomp netgo osusergo", cgo: true, ldflags: "-extldflags -static -X main.version=" + runcVersion[1:]},
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		tools = append(tools, tool{name: name, module: "containerd", pkg: containerdModule + "/cmd/" + name, tags: "no_btrfs no_devmapper no_zfs",
			ldflags: "-X " + containerdModule + "/version.Version=" + containerdVersion})
	}
	return dir, buildTools(dir, append(tools, kubelet)...)
}

func controlPlane(name string) tool { return kubernetes(name, "kubernetes", kubernetesVersion) }

// kubernetes returns a Kubernetes program that reports its version, built from a module
// below test/toolchain.
func kubernetes(name, module, version string) tool {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const stamp = "-X k8s.io/component-base/version."
	return tool{
		name: name, module: module, pkg: "k8s.io/kubernetes/cmd/" + name, version: version,
		ldflags: stamp + "gitVersion=" + version + " " + stamp + "gitMajor=" + major + " " + stamp + "gitMinor=" + minor,
	}
}

// Linter returns the path of golangci-lint, built if missing.
func Linter() (string, error) {
	dir, err := cacheDir("golangci-lint", lintVersion)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "golangci-lint"), buildTools(dir, tool{name: "golangci-lint", pkg: lintModule})
}

// Helm returns the path of helm, built if missing.
func Helm() (string, error) {
	dir, err := cacheDir("helm", helmVersion)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "helm"), buildTools(dir, tool{name: "helm", module: "helm", pkg: "helm.sh/helm/v4/cmd/helm"})
}

// Kustomize returns the path of kustomize, built if missing.
func Kustomize() (string, error) {
	dir, err := cacheDir("kustomize", kustomizeVersion)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "kustomize"), buildTools(dir, tool{name: "kustomize", module: "kustomize", pkg: "sigs.k8s.io/kustomize/kustomize/v5"})
}

// Promtool returns the path of Prometheus's promtool, built if missing, without its
// service discoveries.
func Promtool() (string, error) {
	dir, err := cacheDir("promtool", prometheusVersion)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "promtool"), buildTools(dir, tool{
		name: "promtool", module: "prometheus", pkg: "github.com/prometheus/prometheus/cmd/promtool", tags: "remove_all_sd",
	})
}

// Modules that tests only use files of.
const (
	CertManager        = "github.com/cert-manager/cert-manager"
	PrometheusOperator = "github.com/prometheus-operator/prometheus-operator"
)

// ModuleDir returns the directory of a module that test/toolchain/crds requires.
func ModuleDir(module string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(root, "test", "toolchain", "crds")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download %s: %w\n%s", module, err, out)
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(out, &downloaded); err != nil {
		return "", fmt.Errorf("download %s: %w", module, err)
	}
	return downloaded.Dir, nil
}

// tool describes a third-party program.
type tool struct {
	name    string // file name
	module  string // directory below test/toolchain; empty for test/toolchain itself
	pkg     string
	version string // the program's version, if callers need it
	tags    string
	ldflags string
	cgo     bool // link with libc; the flags still make it static
}

// buildTools builds the tools that dir does not have yet. It holds a lock, and renames
// each tool into place once it is complete.
func buildTools(dir string, tools ...tool) error {
	absent := func(t tool) bool {
		_, err := os.Stat(filepath.Join(dir, t.name))
		return err != nil
	}
	if !slices.ContainsFunc(tools, absent) {
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
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	for _, t := range tools {
		if !absent(t) { // another process may have built it meanwhile
			continue
		}
		out := filepath.Join(dir, t.name)
		module := filepath.Join(root, "test", "toolchain", t.module)
		if err := goBuild(module, out+".new", t.cgo, []string{t.pkg}, "-tags", t.tags, "-ldflags", "-s -w "+t.ldflags); err != nil {
			return err
		}
		if err := os.Rename(out+".new", out); err != nil {
			return err
		}
	}
	return nil
}

// goBuild builds stripped programs; they are static unless cgo and the flags say
// otherwise. out is a file for one package, or a directory ending in a slash for
// several. Building several with one command is faster: they link concurrently, and one
// linker mostly uses one processor.
func goBuild(moduleDir, out string, cgo bool, pkgs []string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out}, flags...)
	cmd := exec.Command("go", append(args, pkgs...)...)
	cmd.Dir = moduleDir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if cgo {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(pkgs, ", "), err, text)
	}
	return nil
}

// Build builds packages of our module into dir, static and stripped.
func Build(dir string, pkgs ...string) error { return build(dir, pkgs) }

func build(dir string, pkgs []string, flags ...string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	return goBuild(root, dir+"/", false, pkgs, flags...)
}

// Image builds Manifold's image for this machine into an OCI archive, as "make image"
// does. The image has the name that the chart uses, with the given tag.
func Image(archive, tag string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	program := archive + ".build"
	if err := goBuild(filepath.Join(root, "deploy", "image"), program, false, []string{"."}); err != nil {
		return err
	}
	cmd := exec.Command(program, "archive", "-release", tag, "-name", "docker.io/manifold-cni/manifold:"+tag, archive)
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the image: %w\n%s", err, text)
	}
	return os.Remove(program)
}

// Programs builds our own programs, the test delegates and test/loop into dir. With
// killPoints they die at the points that the environment says, see internal/killpoint.
func Programs(dir string, killPoints bool) error {
	var flags []string
	if killPoints {
		flags = []string{"-tags", "killpoints"}
	}
	return build(dir, []string{"./cmd/manifold", "./cmd/manifold-agent", "./test/delegates/scripted", "./test/delegates/vfprops", "./test/loop"}, flags...)
}

// GoProgram builds the Go program in a directory of the module into dir, static and
// stripped.
func GoProgram(dir, src string) error { return build(dir, []string{"./" + src}) }

// CProgram builds the C program in a directory of the module into dir, static and
// stripped. The program has a single source file, named after the directory.
func CProgram(dir, src string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	name := filepath.Base(src)
	cmd := exec.Command("cc", "-O2", "-static", "-s", "-o", filepath.Join(dir, name), filepath.Join(root, src, name+".c"))
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", src, err, text)
	}
	return nil
}
