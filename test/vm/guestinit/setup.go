package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/vm/wire"
)

// patience is how long the guest waits for its own devices, by its own clock, which
// runs on even while a busy host lets the guest wait.
const patience = 5 * time.Minute

// setUp loads modules, mounts the disk and prepares the network hardware.
func setUp(c wire.Configuration) error {
	for _, name := range c.Modules {
		if err := load(filepath.Join(wire.Modules, name+".ko")); err != nil {
			return err
		}
	}
	if c.Disk {
		if err := mountDisk(); err != nil {
			return err
		}
	}
	if c.Root {
		if err := switchRoot(); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if c.Uplink != "" {
		if err := connect(c); err != nil {
			return fmt.Errorf("connect %s: %w", c.Uplink, err)
		}
	}
	return enableVFs(c.VFs)
}

// switchRoot makes the disk the root file system of this process and its children. It
// moves the memory file systems along, and makes all mounts shared, as is usual on a
// machine that runs containers. The first process stays on the old root and needs
// nothing there.
func switchRoot() error {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		if err := unix.Mount(dir, wire.Disk+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to the disk: %w", dir, err)
		}
	}
	if err := unix.Chdir(wire.Disk); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the disk the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// connect gives the virtio network device its name, address and default route.
func connect(c wire.Configuration) error {
	var devices []string
	for end := time.Now().Add(patience); len(devices) == 0; time.Sleep(10 * time.Millisecond) {
		var err error
		if devices, err = filepath.Glob("/sys/bus/virtio/drivers/virtio_net/virtio*/net/*"); err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("there is no virtio network device")
		}
	}
	link, err := netlink.LinkByName(filepath.Base(devices[0]))
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(c.Address)
	if err != nil {
		return err
	}
	for _, err := range []error{netlink.LinkSetName(link, c.Uplink), netlink.LinkSetUp(link), netlink.AddrAdd(link, addr)} {
		if err != nil {
			return err
		}
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(c.Gateway)})
}

// mountDisk mounts the guest's disk. The kernel replays its journal.
func mountDisk() error {
	const device = "/dev/vda"
	if err := os.MkdirAll(wire.Disk, 0o755); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Mount(device, wire.Disk, "ext4", 0, "")
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) || time.Now().After(end) {
			return fmt.Errorf("mount %s: %w", device, err)
		}
	}
}

// load loads a kernel module.
func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

// enableVFs brings every PF up and gives it count VFs. It returns when each VF has its
// network device.
func enableVFs(count int) error {
	files, err := filepath.Glob("/sys/bus/pci/devices/*/sriov_numvfs")
	if err != nil {
		return err
	}
	for _, file := range files {
		pf := filepath.Dir(file)
		name, err := waitNetDev(pf)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(count)), 0); err != nil {
			return fmt.Errorf("enable %d VFs: %w", count, err)
		}
		for i := range count {
			if _, err := waitNetDev(filepath.Join(pf, "virtfn"+strconv.Itoa(i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitNetDev waits for the network device of a PCI function and returns its name.
func waitNetDev(function string) (string, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if devices, err := os.ReadDir(filepath.Join(function, "net")); err == nil && len(devices) > 0 {
			return devices[0].Name(), nil
		}
	}
	return "", fmt.Errorf("%s has no network device", function)
}

// openPort opens the serial port to the host.
func openPort() (*os.File, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, file := range names {
			name, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(name)) == wire.PortName {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_RDWR, 0)
			}
		}
	}
	return nil, fmt.Errorf("there is no serial port %s", wire.PortName)
}
