// Package harness provides what end-to-end tests and the demo need: user, network and
// mount namespaces of their own, the reference plugins and our programs, and a
// container runtime's way to call them. Inside, the network namespace is the node's
// host, and the test is its only runtime.
//
// A test package calls [Main] from TestMain. The test binary first builds programs,
// which may need the module cache, then runs itself again inside new namespaces: as
// root if it is root, else in a user namespace. Nothing that a test does is visible
// outside, and everything ends with the process.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// insideEnv marks the process that runs inside the namespaces.
const insideEnv = "MANIFOLD_HARNESS_INSIDE"

// Main runs the tests of a package inside namespaces. It first calls the prepare
// functions outside, to build what needs the network.
func Main(m *testing.M, prepare ...func() error) {
	code, err := Enter(prepare...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		os.Exit(1)
	}
	if code >= 0 {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// Enter runs this program again inside namespaces and returns its exit status. Inside,
// it prepares the namespaces and returns -1.
func Enter(prepare ...func() error) (int, error) {
	if os.Getenv(insideEnv) != "" {
		return -1, furnish()
	}
	for _, p := range prepare {
		if err := p(); err != nil {
			return 0, err
		}
	}
	return enter(os.Args[1:])
}

// Alone runs only the calling test again, inside namespaces of its own; it is for
// packages whose other tests need none. Inside it returns true. Outside it returns
// false once that run is over, and fails the test if the run failed.
func Alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		if err := furnish(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	code, err := enter([]string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.count=1"})
	if err != nil || code != 0 {
		t.Fatalf("inside namespaces: status %d, %v", code, err)
	}
	return false
}

// enter runs this program with args inside namespaces and returns its exit status.
func enter(args []string) (int, error) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return Again(args, attr, insideEnv+"=1")
}

// Again runs this program again with other arguments, the same streams, additional
// environment, and the attributes (namespaces) of attr, and returns its exit status.
// The child gets this process's SIGINT and SIGTERM and does not outlive it.
func Again(args []string, attr *syscall.SysProcAttr, env ...string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env, cmd.SysProcAttr = append(os.Environ(), env...), attr
	attr.Pdeathsig = syscall.SIGKILL
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("enter namespaces: %w; run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have exited
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 0, fmt.Errorf("inside namespaces: %w", err)
}

// furnish turns the new namespaces into a bare host: mounts do not propagate outside,
// /run is empty, /sys and /dev/vfio hold only what a test puts there, and loopback is
// up.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"/run/netns", hostRoot + "/sys"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Our programs and delegates see the tree that a test builds.
	if err := unix.Mount(hostRoot+"/sys", "/sys", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := furnishDev(); err != nil {
		return err
	}
	lo, err := netlinksafe.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// furnishDev replaces /dev by one that has the same entries except for VFIO's device
// nodes, which come from the tree that a test builds.
func furnishDev() error {
	const was = "/run/dev"
	if err := os.MkdirAll(was, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev", was, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind mount /dev: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	entries, err := os.ReadDir(was)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "vfio" {
			continue
		}
		if err := os.Symlink(filepath.Join(was, e.Name()), filepath.Join("/dev", e.Name())); err != nil {
			return err
		}
	}
	return os.Symlink(hostRoot+"/dev/vfio", "/dev/vfio")
}

// Host is the node's hardware as a test builds it: a sysfs tree with one PCI function,
// and software network devices that stand for the function's subfunctions.
type Host struct {
	tree *sriovtest.Tree
	next int
}

// hostRoot holds the host's sys/ and dev/vfio/, which appear at /sys and /dev/vfio.
const hostRoot = "/run/host"

// hostPF is the PCI function that the devices of [Host.AddDevice] are subfunctions of.
const hostPF = "0000:3b:00.0"

// NewHost discards the previous hardware and starts with one PCI function. Call it
// inside the namespaces of [Enter].
func NewHost() (*Host, error) {
	entries, err := os.ReadDir(hostRoot + "/sys")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(hostRoot, "sys", e.Name())); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(hostRoot + "/dev"); err != nil {
		return nil, err
	}
	h := &Host{tree: sriovtest.New(hostRoot)}
	h.tree.AddFunction(sriovtest.Function{Address: hostPF, Vendor: "15b3", Device: "101d", Driver: "mlx5_core"})
	return h, h.tree.Err()
}

// AddDevice creates a network device on the host and shows it in sysfs as an auxiliary
// device, whose ID it returns. The device is one end of a veth pair; the other end's
// name is "p-" and the device's name. The kernel reports no parent device for it.
func (h *Host) AddDevice(netDev string) (id string, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = netDev
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p-" + netDev}); err != nil {
		return "", fmt.Errorf("add %s: %w", netDev, err)
	}
	peer, err := netlinksafe.LinkByName("p-" + netDev)
	if err == nil {
		err = netlink.LinkSetUp(peer)
	}
	if err != nil {
		return "", fmt.Errorf("set the peer of %s up: %w", netDev, err)
	}
	h.next++
	id = fmt.Sprintf("mlx5_core.sf.%d", h.next)
	h.tree.AddAuxiliary(sriovtest.Auxiliary{ID: id, Parent: hostPF, Driver: "mlx5_core.sf", SFNum: h.next, NetDev: netDev})
	return id, h.tree.Err()
}
