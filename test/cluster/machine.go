package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/harness"
)

// Environment variables of the processes that [Enter] starts: the run's directory, and
// which stage of Enter the process is at.
const (
	dirEnv   = "MANIFOLD_CLUSTER_DIR"
	stageEnv = "MANIFOLD_CLUSTER_STAGE"
)

// Enter builds all programs, runs this program again on a machine of its own, and
// returns its exit status. Within that machine Enter prepares the machine and returns
// -1.
//
// The machine is a set of namespaces: PID, mount, network, IPC, UTS and cgroup. Its
// first process reaps orphans as an init does, and when it exits the kernel kills all
// others. So nothing that a cluster starts, mounts or creates outlives this process,
// however it exits; Enter removes the directories of its files and cgroups.
func Enter() (code int, err error) {
	switch os.Getenv(stageEnv) {
	case "init":
		return initProcess()
	case "inside":
		return -1, furnish(os.Getenv(dirEnv))
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("a node needs root: the kubelet and the container runtime create cgroups and mounts")
	}
	dir, err := os.MkdirTemp("", "manifold-cluster-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, removeCgroups(filepath.Base(dir)), os.RemoveAll(dir)) }()
	if err := build(dir, releases, "./cmd/manifold", "./cmd/manifold-agent"); err != nil {
		return 0, err
	}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	return harness.Again(os.Args[1:], attr, dirEnv+"="+dir, stageEnv+"=init")
}

// initProcess is the machine's first process. It starts this program once more, in a
// cgroup of its own, and reaps every process until that one exits.
func initProcess() (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	if err := enterCgroups(filepath.Base(os.Getenv(dirEnv))); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := os.Setenv(stageEnv, "inside"); err != nil {
		return 0, err
	}
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWCGROUP},
	})
	if err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s) // it may have exited
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, err
		case pid == child.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == child.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// hierarchy is a mounted cgroup hierarchy and this process's place in it.
type hierarchy struct {
	options string // mount options: controllers or a name; empty for the unified hierarchy
	dir     string // this process's own cgroup
}

// hierarchies returns the version 1 hierarchies, or the unified one if no version 1
// hierarchy has controllers.
func hierarchies() ([]hierarchy, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var out []hierarchy
	unified, controllers := hierarchy{dir: cgroupRoot}, false
	for _, line := range strings.Split(strings.TrimSpace(string(own)), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		if parts[1] == "" {
			unified.dir += parts[2]
			continue
		}
		name, named := strings.CutPrefix(parts[1], "name=")
		if named {
			parts[1] = "none,name=" + name
		}
		controllers = controllers || !named
		out = append(out, hierarchy{options: parts[1], dir: filepath.Join(cgroupRoot, name, parts[2])})
	}
	if !controllers {
		return []hierarchy{unified}, nil
	}
	return out, nil
}

// cgroupRoot is where hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// mountPoint returns where the hierarchy is mounted.
func (h hierarchy) mountPoint() string {
	return filepath.Join(cgroupRoot, strings.TrimPrefix(h.options, "none,name="))
}

// enterCgroups creates a cgroup in each hierarchy and moves this process into it.
func enterCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if strings.Contains(h.options, "cpuset") { // empty in a new cgroup, and no process can enter until it is set
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(h.dir, file))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the cgroups that [enterCgroups] created, with all below them.
// Their processes have exited, but the kernel may report the cgroups as busy for a
// moment.
func removeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		err = errors.Join(err, removeCgroup(filepath.Join(h.dir, name)))
	}
	return err
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, d := range slices.Backward(dirs) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			e := unix.Rmdir(d)
			if !errors.Is(e, unix.EBUSY) || time.Now().After(end) {
				err = errors.Join(err, e)
				break
			}
		}
	}
	return err
}

// mount is one call of mount(2); mountAll creates a target that does not exist.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func mountAll(mounts ...mount) error {
	for _, m := range mounts {
		err := os.MkdirAll(m.target, 0o755)
		if err == nil {
			err = unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// furnish turns the machine into a bare node: /opt, /var/lib and /var/log are empty
// directories of the run, /etc is writable and keeps its changes in the run's directory,
// and /run is an empty tmpfs. It mounts the machine's own sysfs at realSys; [mountSys]
// later combines that with the PCI and auxiliary buses that tests build.
func furnish(dir string) error {
	if err := uncover("/opt", "/run", "/var/lib", "/var/log"); err != nil {
		return err
	}
	var mounts []mount
	for _, d := range []string{"/opt", "/var/lib", "/var/log"} {
		source := filepath.Join(dir, "root", d)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		mounts = append(mounts, mount{source: source, target: d, flags: unix.MS_BIND})
	}
	upper, work := filepath.Join(dir, "root", "etc"), filepath.Join(dir, "work-etc")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	mounts = append(mounts,
		mount{"overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=" + upper + ",workdir=" + work},
		mount{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		mount{target: "/run", flags: unix.MS_SHARED}, // as on a node, so that containers see later mounts
		mount{"sysfs", realSys, "sysfs", 0, ""},
	)
	if err := mountAll(mounts...); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(NodeName)); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll("/run/netns", 0o755), os.MkdirAll(builtSys, 0o755))
}

// uncover unmounts everything at or below directories that will be covered. A covered
// mount would stay in the mount table, where the container runtime looks up how a
// directory is mounted; /run/netns is often a mount of the host.
func uncover(dirs ...string) error {
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(strings.TrimSpace(string(list)), "\n")) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !slices.ContainsFunc(dirs, func(d string) bool { return fields[4] == d || strings.HasPrefix(fields[4], d+"/") }) {
			continue
		}
		point := octal.Replace(fields[4])
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// octal decodes the escapes that the kernel writes for special characters in mount
// points.
var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

const (
	realSys  = "/run/sysfs"    // the kernel's sysfs
	builtSys = "/run/host/sys" // what package harness builds
)

// mountSys assembles /sys: the kernel's sysfs, with the buses and devices that tests
// build in place of its own.
func mountSys() error {
	hierarchies, err := hierarchies()
	if err != nil {
		return err
	}
	if err := mountAll(mount{"tmpfs", "/sys", "tmpfs", 0, "mode=755"}); err != nil {
		return err
	}
	for _, part := range []string{"", "bus", "devices", "fs"} {
		for _, from := range []string{builtSys, realSys} { // the first that has a name wins
			entries, err := os.ReadDir(filepath.Join(from, part))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			for _, e := range entries {
				if err := bindSys(from, filepath.Join(part, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return mountCgroups(hierarchies)
}

// bindSys shows one directory of a sysfs in /sys, unless /sys already has it.
func bindSys(from, name string) error {
	if slices.Contains([]string{"bus", "devices", "fs", "fs/cgroup"}, name) || from == builtSys && name == "class" {
		return nil
	}
	target := filepath.Join("/sys", name)
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	return mountAll(mount{source: filepath.Join(from, name), target: target, flags: unix.MS_BIND | unix.MS_REC})
}

// mountCgroups mounts the hierarchies as this machine's cgroup namespace shows them. In
// the unified hierarchy a cgroup that delegates controllers may hold no processes, so
// this process moves into a child.
func mountCgroups(all []hierarchy) error {
	if all[0].options != "" {
		for _, h := range all {
			if err := mountAll(mount{"cgroup", h.mountPoint(), "cgroup", 0, h.options}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := mountAll(mount{"cgroup2", cgroupRoot, "cgroup2", 0, ""}); err != nil {
		return err
	}
	leaf := filepath.Join(cgroupRoot, "lab")
	if err := errors.Join(os.Mkdir(leaf, 0o755), os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644)); err != nil {
		return err
	}
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	words := bufio.NewScanner(strings.NewReader(string(controllers)))
	words.Split(bufio.ScanWords)
	for words.Scan() {
		if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+words.Text()), 0o644); err != nil {
			return err
		}
	}
	return words.Err()
}
