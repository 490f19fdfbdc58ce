package image

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// builder runs Debian's buildah with a storage of its own.
type builder struct {
	*testing.T
	dir string
}

func (b *builder) buildah(args ...string) (output string) {
	b.Helper()
	storage := []string{"--root", filepath.Join(b.dir, "root"), "--runroot", filepath.Join(b.dir, "run"), "--storage-driver", "vfs"}
	cmd := exec.Command("buildah", append(storage, args...)...)
	cmd.Dir = root
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // what buildah mounts goes with it
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		b.Fatalf("buildah %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestDockerfile proves that a container builder makes the same image from the
// Dockerfile as deploy/image makes without one. There is no registry: the first stage
// starts from an image of this machine's own Go.
func TestDockerfile(t *testing.T) {
	if _, err := exec.LookPath("buildah"); err != nil || os.Geteuid() != 0 {
		t.Skipf("building the Dockerfile needs root and buildah (Debian package buildah): %v, user %d", err, os.Geteuid())
	}
	b := &builder{t, t.TempDir()}
	volumes := b.makeGolang()
	file := filepath.Join(b.dir, "image.tar")
	b.buildah(append(append([]string{
		"build", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers=false", "--identity-label=false", "--tag", "built",
		"--build-arg", "TARGETARCH=" + runtime.GOARCH, "--build-arg", "RELEASE=v9.8.7", "--build-arg", "REVISION=0123456789abcdef", "--build-arg", "CREATED=1700000000",
	}, volumes...), ".")...)
	b.buildah("push", "built", "oci-archive:"+file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	layout, _ := untar(t, raw)
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(layout["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%v: %s", err, layout["index.json"])
	}
	imageIsRight(t, layout, index.Manifests[0])
}

// makeGolang creates the image that the Dockerfile's first stage starts from. It is
// empty except for what is mounted from this machine: its programs, Go, and Go's
// caches. makeGolang returns the arguments for the mounts.
func (b *builder) makeGolang() (volumes []string) {
	b.Helper()
	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		b.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^ARG GO=(\S+)$`).FindSubmatch(dockerfile)
	out, err := exec.Command("go", "env", "-json", "GOROOT", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOSUMDB", "GONOSUMDB").Output()
	env := map[string]string{}
	if err == nil {
		err = json.Unmarshal(out, &env)
	}
	if err != nil || version == nil {
		b.Fatalf("%v: %s", err, dockerfile)
	}
	directories := []string{"/usr", "/etc", env["GOROOT"], env["GOMODCACHE"], env["GOCACHE"]}
	tree := b.TempDir()
	for _, dir := range []string{"bin", "lib", "lib64"} {
		target, err := os.Readlink("/" + dir)
		if err != nil { // it is a directory
			directories = append(directories, "/"+dir)
			continue
		}
		if err := os.Symlink(target, filepath.Join(tree, dir)); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(tree, "tmp"), 0o777); err != nil {
		b.Fatal(err)
	}
	for _, dir := range directories {
		volumes = append(volumes, "--volume", dir+":"+dir)
	}
	env["PATH"] = env["GOROOT"] + "/bin:/usr/bin:/bin"
	config := []string{"config"}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		config = append(config, "--env", name+"="+env[name])
	}
	container := b.buildah("from", "scratch")
	b.buildah("add", container, tree, "/")
	b.buildah(append(config, container)...)
	b.buildah("commit", container, "docker.io/library/golang:"+string(version[1]))
	return volumes
}
