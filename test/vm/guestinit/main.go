// Command guestinit is the first process of a guest of package vm. It mounts what a
// program expects on a Linux machine, loads kernel modules, enables VFs, and then runs
// the programs that the host asks for.
//
// Process 1 only reaps orphans and powers the machine off. Its child does everything
// else, so that the child can wait for its own children undisturbed.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/vm/guest"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

func main() {
	if os.Getpid() == 1 {
		first()
		return
	}
	if err := second(); err != nil {
		fmt.Fprintln(os.Stderr, "guestinit:", err)
		os.Exit(1)
	}
}

// first starts this program again as its child and reaps every process until that child
// exits.
func first() {
	child := exec.Command("/proc/self/exe", "serve")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := mountAll()
	if err == nil {
		err = child.Start()
	}
	for err == nil {
		var pid int
		if pid, err = unix.Wait4(-1, nil, 0, nil); pid == child.Process.Pid {
			break
		}
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestinit:", err)
	}
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "guestinit: power off:", err)
	time.Sleep(time.Hour) // the kernel panics when the first process exits
}

// mountAll mounts the usual file systems.
func mountAll() error {
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", ""},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return os.Mkdir("/run/netns", 0o755)
}

// second sets up the guest and serves the host until it says to power off.
func second() error {
	raw, err := os.ReadFile(wire.Setup)
	if err != nil {
		return err
	}
	var c wire.Configuration
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	problem := setUp(c) // first, because the port needs modules
	port, err := openPort()
	if err != nil {
		return errors.Join(problem, err)
	}
	s := guest.NewServer(port)
	if problem != nil {
		return errors.Join(problem, s.Send(wire.Message{Kind: wire.Failed, Text: problem.Error()}))
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if err := s.Send(wire.Message{Kind: wire.Ready, Text: string(boot)}); err != nil {
		return err
	}
	return s.Serve()
}
