package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// MaxMemory is the maximum memory in MiB of a guest with igb functions; see the
// package's pitfalls.
const MaxMemory = 2560

// Addresses on the network of [Config].Uplink: the guest's own, and the host's as seen
// by the guest.
const (
	GuestAddress = "10.0.2.15"
	GuestsHost   = "10.0.2.2"
)

// VFsPerPF is the number of VFs of an emulated igb PF.
const VFsPerPF = 7

// Functions returns the PCI addresses of a PF, counted from 0, and of its VFs. They
// follow from the bus behind the PF's root port, see [Config.arguments], and from the
// VF offset and stride of the igb.
func Functions(index int) (pf string, vfs []string) {
	bus := fmt.Sprintf("0000:%02x", bridgeBus(index)+1)
	for i := range VFsPerPF {
		vfs = append(vfs, fmt.Sprintf("%s:%02x.%d", bus, 0x10+i/4, i%4*2))
	}
	return bus + ":00.0", vfs
}

// bridgeBus is the bus number of a PF's host bridge. The next bus is the one behind the
// root port.
func bridgeBus(pf int) int { return 32 * (pf + 1) }

// Files in a guest's directory that help to find out what went wrong. Every boot
// appends to them.
const (
	ConsoleFile = "console" // output of the guest's kernel and init program
	LogFile     = "qemu"    // output of QEMU
)

// Config describes a guest.
type Config struct {
	// Dir is an existing directory for the guest's image, [ConsoleFile], [LogFile] and
	// a socket. Its path must be short because of the socket.
	Dir string
	// Memory is in MiB; 0 means [MaxMemory].
	Memory int
	// PFs is the number of igb PFs, at most 2. Each has its own root port, PCI host
	// bridge and NUMA node. When [Boot] returns, their links are up and all their VFs
	// exist.
	PFs int
	// IOMMU gives the guest an IOMMU. Without it there are no IOMMU groups and no
	// vfio-pci.
	IOMMU bool
	// Disk is a file on the host that is the guest's disk, mounted at [wire.Disk];
	// empty for none. If the file does not exist, Boot creates it with an empty ext4
	// file system of [DiskSize]. Everything else of the guest is in memory. Booting
	// again with the same disk is a reset of the machine; booting again after
	// [Machine.Kill] is its return after a power failure.
	Disk string
	// Root makes the disk the guest's root file system, so that everything except the
	// usual memory file systems survives a reset. Files are written when the disk is
	// created.
	Root bool
	// Uplink is the name of a network device through which the guest reaches the
	// loopback of the host's current network namespace, as [GuestsHost]. The guest's
	// address on it is [GuestAddress]. Empty for none.
	Uplink string
	// Ports are TCP ports of the guest that the host reaches on that loopback.
	Ports []int
	// Modules are names of kernel modules to load. Their dependencies and the modules
	// for the hardware above are added automatically.
	Modules []string
	// Files are copied into the guest: the keys are paths there, the values are files
	// or directories on the host. All files become executable.
	Files map[string]string
}

// check fills in defaults and validates the configuration.
func (c *Config) check() error {
	if c.Memory == 0 {
		c.Memory = MaxMemory
	}
	if c.PFs > 0 && c.Memory > MaxMemory {
		return fmt.Errorf("%d MiB of memory: above %d the emulated igb loses its interrupts", c.Memory, MaxMemory)
	}
	if strings.Contains(c.Disk, ",") {
		return fmt.Errorf("path of the disk %q has a comma, which separates QEMU's options", c.Disk)
	}
	if c.Root && c.Disk == "" {
		return errors.New("a root file system on the disk needs a disk")
	}
	if c.PFs < 0 || c.PFs > 2 {
		return fmt.Errorf("%d PFs, want at most 2", c.PFs)
	}
	for to := range c.Files {
		if !path.IsAbs(to) || path.Clean(to) != to {
			return fmt.Errorf("path in the guest %q is not absolute and clean", to)
		}
	}
	return nil
}

// modules returns the names of all modules that the guest needs.
func (c *Config) modules() []string {
	names := []string{"virtio_pci", "virtio_console", "virtio_rng"}
	if c.PFs > 0 {
		names = append(names, "igb", "igbvf")
	}
	if c.IOMMU {
		names = append(names, "vfio_pci", "vfio_iommu_type1")
	}
	if c.Disk != "" {
		// ext4 requests crc32c by name, not as a symbol, so it is not among ext4's
		// dependencies.
		names = append(names, "virtio_blk", "crc32c_generic", "ext4")
	}
	if c.Uplink != "" {
		names = append(names, "virtio_net")
	}
	return append(names, c.Modules...)
}

// directories exist in every guest's root file system.
var directories = []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/lib"}

// image builds the guest's initramfs and returns its path.
func (c *Config) image(s *Software) (name string, err error) {
	if err := harness.Build(c.Dir, "./test/vm/guestinit"); err != nil {
		return "", err
	}
	name = filepath.Join(c.Dir, "initramfs")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := newCPIO(f)
	for to, from := range map[string]string{"/init": filepath.Join(c.Dir, "guestinit"), "/bin/busybox": s.busybox()} {
		if err := w.copy(to, from); err != nil {
			return "", err
		}
	}
	for _, dir := range directories {
		if err := w.dir(dir); err != nil {
			return "", err
		}
	}
	if err := c.addModules(w, s); err != nil {
		return "", err
	}
	if !c.Root {
		for to, from := range c.Files {
			if err := w.copy(to, from); err != nil {
				return "", err
			}
		}
	}
	return name, w.close()
}

// addModules adds the kernel modules to the image, and the configuration that says in
// which order to load them.
func (c *Config) addModules(w *cpio, s *Software) error {
	tree, err := openModules(s.modules())
	if err != nil {
		return err
	}
	setup := wire.Configuration{Disk: c.Disk != "", Root: c.Root}
	if c.Uplink != "" {
		setup.Uplink, setup.Address, setup.Gateway = c.Uplink, GuestAddress+"/24", GuestsHost
	}
	if c.PFs > 0 {
		setup.VFs = VFsPerPF
	}
	if setup.Modules, err = tree.order(c.modules()); err != nil {
		return err
	}
	for _, name := range setup.Modules {
		content, err := tree.content(name)
		if err != nil {
			return err
		}
		if err := w.file(path.Join(wire.Modules, name+".ko"), content); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(setup)
	if err != nil {
		return err
	}
	return w.file(wire.Setup, raw)
}

// processor is the largest CPU model that QEMU can emulate, without the features that
// are slow to emulate. The kernel and Go's runtime prefer the instructions of erms and
// fsrm, which QEMU emulates byte by byte; without them they copy words. A fifth level
// of page tables would lengthen every page walk.
const processor = "max,erms=off,fsrm=off,la57=off"

// arguments returns QEMU's arguments for an image and the socket that the serial port
// connects to.
//
// A pxb-pcie bridge puts a function on a NUMA node, and a root port below the bridge
// allows the function to have VFs. In the presence of such bridges every other device
// must name its bus.
func (c *Config) arguments(s *Software, image, socket string) []string {
	half := c.Memory / 2
	args := []string{
		"-nographic", "-nodefaults", "-no-user-config", "-no-reboot", "-M", "q35",
		"-accel", "tcg,thread=multi", "-cpu", processor, "-smp", "2", "-m", fmt.Sprint(2 * half),
		"-object", fmt.Sprintf("memory-backend-ram,id=mem0,size=%dM", half), "-numa", "node,nodeid=0,memdev=mem0,cpus=0",
		"-object", fmt.Sprintf("memory-backend-ram,id=mem1,size=%dM", half), "-numa", "node,nodeid=1,memdev=mem1,cpus=1",
		"-chardev", "file,id=console,append=on,path=" + filepath.Join(c.Dir, ConsoleFile), "-serial", "chardev:console",
		"-kernel", s.kernel(), "-initrd", image,
	}
	kernel := []string{"console=ttyS0", "loglevel=4", "panic=-1", "net.ifnames=0", "mitigations=off", "random.trust_cpu=on",
		"no_timer_check",  // a busy host emulates the timer too slowly for the check
		"tsc=reliable",    // it is; otherwise every read of the clock is a system call to an emulated device
		"init_on_alloc=0", // memory for programs is cleared anyway, and the rest holds no secrets
	}
	if c.IOMMU {
		args = append(args, "-device", "intel-iommu")
		kernel = append(kernel, "intel_iommu=on")
	}
	args = append(args, "-append", strings.Join(kernel, " "),
		"-device", "virtio-rng-pci,bus=pcie.0",
		"-device", "virtio-serial-pci,bus=pcie.0", "-chardev", "socket,id=port,path="+socket,
		"-device", "virtserialport,chardev=port,name="+wire.PortName)
	if c.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+c.Disk, "-device", "virtio-blk-pci,bus=pcie.0,drive=disk")
	}
	if c.Uplink != "" {
		uplink := "user,id=uplink"
		for _, port := range c.Ports {
			uplink += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", port, port)
		}
		args = append(args, "-netdev", uplink, "-device", "virtio-net-pci,bus=pcie.0,netdev=uplink,romfile=")
	}
	for i := range c.PFs {
		args = append(args,
			"-device", fmt.Sprintf("pxb-pcie,id=bridge%d,bus=pcie.0,bus_nr=%d,numa_node=%d", i, bridgeBus(i), i),
			"-device", fmt.Sprintf("pcie-root-port,id=port%d,bus=bridge%d,chassis=%d", i, i, i+1),
			"-netdev", fmt.Sprintf("user,id=net%d,restrict=on", i),
			"-device", fmt.Sprintf("igb,bus=port%d,netdev=net%d,mac=52:54:00:00:%02x:00,romfile=", i, i, i+1))
	}
	return args
}
