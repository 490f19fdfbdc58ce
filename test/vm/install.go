package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// layout is the version of the cache directory's layout and of the choice of packages.
// Changing either requires a new version, which means a new directory.
const layout = "1"

// Software is the software that guests consist of and run on: distribution packages
// unpacked into one tree, which is read-only once complete.
type Software struct {
	// Packages are the packages in the tree, as name_version_architecture.
	Packages []string
	// Release is the kernel's release, as uname -r prints it in the guest.
	Release string

	root string
}

// Install returns the software for guests. If the user's cache directory does not have
// it yet, Install downloads and unpacks it and reports that on log. Several processes
// may call it at once. To get newer packages, remove the directory vm-* of the cache.
//
// The packages are Debian's, from the archives that the host's own apt uses: the kernel
// and busybox of the host's release, and QEMU from its backports, because the igb
// device needs QEMU 8.0.
func Install(ctx context.Context, log io.Writer) (*Software, error) {
	codename, err := debianCodename()
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "manifold", "vm-"+codename+"-"+layout)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	s, err := openSoftware(dir)
	if !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	if err := unpackPackages(ctx, dir, codename, log); err != nil {
		return nil, fmt.Errorf("install QEMU and a kernel for guests: %w", err)
	}
	return openSoftware(dir)
}

// openSoftware opens the tree of a directory. If the tree is not complete, the error
// satisfies errors.Is(err, os.ErrNotExist).
func openSoftware(dir string) (*Software, error) {
	list, err := os.ReadFile(filepath.Join(dir, "packages"))
	if err != nil {
		return nil, err
	}
	s := &Software{Packages: strings.Fields(string(list)), root: filepath.Join(dir, "root")}
	kernels, err := fs.Glob(os.DirFS(s.root), "boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("%s has %d kernels, want one", s.root, len(kernels))
	}
	s.Release = strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	return s, nil
}

func (s *Software) kernel() string  { return filepath.Join(s.root, "boot", "vmlinuz-"+s.Release) }
func (s *Software) busybox() string { return filepath.Join(s.root, "bin", "busybox") }
func (s *Software) modules() string { return filepath.Join(s.root, "lib", "modules", s.Release) }

// qemu returns a command for the emulator that finds its libraries, modules and
// firmware in the tree.
func (s *Software) qemu(args ...string) *exec.Cmd {
	share, lib := filepath.Join(s.root, "usr", "share"), filepath.Join(s.root, "usr", "lib", "x86_64-linux-gnu")
	args = append([]string{"-L", filepath.Join(share, "qemu"), "-L", filepath.Join(share, "seabios")}, args...)
	cmd := exec.Command(filepath.Join(s.root, "usr", "bin", "qemu-system-x86_64"), args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib+":"+filepath.Join(s.root, "lib", "x86_64-linux-gnu"),
		"QEMU_MODULE_DIR="+filepath.Join(lib, "qemu"))
	return cmd
}

// debianCodename returns the codename of the host's Debian release.
func debianCodename() (string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "", err
	}
	defer f.Close()
	fields := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		fields[key] = strings.Trim(value, `"`)
	}
	if fields["ID"] != "debian" || fields["VERSION_CODENAME"] == "" {
		return "", fmt.Errorf("guests consist of Debian's packages, but this machine runs %q: run this in a Debian container", fields["PRETTY_NAME"])
	}
	return fields["VERSION_CODENAME"], lines.Err()
}

// apt runs the package manager with its own lists and caches, so that it needs no root
// and changes nothing outside dir.
type apt struct {
	ctx context.Context
	dir string
}

// newApt sets up a package manager for a release and its backports.
func newApt(ctx context.Context, dir, codename string) (*apt, error) {
	a := &apt{ctx: ctx, dir: dir}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	archive, err := archiveOf(ctx, codename)
	if err != nil {
		return nil, err
	}
	var sources strings.Builder
	for _, suite := range []string{codename, codename + "-backports"} {
		fmt.Fprintf(&sources, "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", archive, suite)
	}
	return a, os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644)
}

// archiveOf returns the archive that the host's package manager uses for a release.
func archiveOf(ctx context.Context, codename string) (string, error) {
	out, err := output(exec.CommandContext(ctx, "apt-get", "--print-uris", "update"))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`'(\S+?)/*/dists/` + regexp.QuoteMeta(codename) + `/InRelease'`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("this machine's package manager has no archive for %s", codename)
	}
	return string(m[1]), nil
}

// command returns one of apt's programs, set up to run in the directory for packages.
func (a *apt) command(name string, args ...string) *exec.Cmd {
	options := []string{
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Etc::SourceList=" + filepath.Join(a.dir, "sources.list"), "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "APT::Sandbox::User=root", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}
	cmd := exec.CommandContext(a.ctx, name, append(options, args...)...)
	cmd.Dir = filepath.Join(a.dir, "debs")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

// missing returns the packages, as name=version, that installing a package from the
// backports would add to the host.
func (a *apt) missing(codename, name string) ([]string, error) {
	out, err := output(a.command("apt-get", "--simulate", "-t", codename+"-backports", "--no-install-recommends", "install", name))
	if err != nil {
		return nil, err
	}
	var packages []string
	for _, m := range regexp.MustCompile(`(?m)^Inst (\S+) (?:\[\S+\] )?\((\S+) `).FindAllSubmatch(out, -1) {
		packages = append(packages, string(m[1])+"="+string(m[2]))
	}
	return packages, nil
}

// kernelPackage returns the package name of the release's current kernel.
func (a *apt) kernelPackage() (string, error) {
	out, err := output(a.command("apt-cache", "depends", "linux-image-amd64"))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("linux-image-amd64 depends on no kernel: %s", out)
	}
	return string(m[1]), nil
}

// unpackPackages downloads the packages and unpacks them into dir/root. The list of
// packages is written last and marks the tree as complete.
func unpackPackages(ctx context.Context, dir, codename string, log io.Writer) error {
	tmp, err := os.MkdirTemp(dir, "apt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	a, err := newApt(ctx, tmp, codename)
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "vm: downloading QEMU and a kernel from %s's archive into %s\n", codename, dir)
	if _, err := output(a.command("apt-get", "update")); err != nil {
		return err
	}
	packages, err := a.missing(codename, "qemu-system-x86")
	if err != nil {
		return err
	}
	kernel, err := a.kernelPackage()
	if err != nil {
		return err
	}
	packages = append(packages, kernel, "busybox-static")
	if _, err := output(a.command("apt-get", append([]string{"download"}, packages...)...)); err != nil {
		return err
	}
	return a.unpack(dir)
}

// unpack unpacks the downloaded packages into dir/root.
func (a *apt) unpack(dir string) error {
	root := filepath.Join(dir, "root")
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	debs := filepath.Join(a.dir, "debs")
	files, err := fs.Glob(os.DirFS(debs), "*.deb")
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, file := range files {
		if _, err := output(exec.CommandContext(a.ctx, "dpkg-deb", "--extract", filepath.Join(debs, file), root)); err != nil {
			return err
		}
		fmt.Fprintln(&list, strings.TrimSuffix(file, ".deb"))
	}
	return os.WriteFile(filepath.Join(dir, "packages"), []byte(list.String()), 0o644)
}

// output returns a command's standard output. The error includes what it wrote to
// stderr.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return out, nil
}
