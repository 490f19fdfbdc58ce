package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrNotVF is wrapped by the errors of methods that need a virtual function and are
// given another PCI function.
var ErrNotVF = errors.New("not a virtual function")

// Function is what sysfs tells about one PCI function.
type Function struct {
	// Address is dddd:bb:dd.f in lower case.
	Address string
	// PF is the address of the physical function. It is empty unless this is a VF.
	PF string
	// VFIndex is N of the PF's virtfnN link to this function, which is the VF number of
	// netlink and ip-link(8). It is -1 unless this is a VF.
	VFIndex int
	// VFs are a PF's virtual functions by index. The address at an index without a VF
	// is empty, for example while VFs are added or removed, or after one was unplugged.
	VFs []string
	// TotalVFs is the number of VFs that the PF's driver allows, and NumVFs the number
	// of enabled VFs (sriov_totalvfs, sriov_numvfs). Both are 0 unless this is a PF.
	TotalVFs, NumVFs int
	// NetDevs are the names of the function's network devices in the network namespace
	// of the sysfs mount, in natural order. For a PF in switchdev mode they include the
	// representors of its VFs, see [FS.Uplink]. They do not include the network devices
	// of auxiliary devices (subfunctions), see [FS.Auxiliary].
	NetDevs []string
	// Driver is the name of the bound driver, or empty.
	Driver string
	// IOMMUGroup is the number of the group. It is empty without an IOMMU.
	IOMMUGroup string
	// NUMANode is -1 if the platform does not tell.
	NUMANode int
	// Vendor and Device have four hexadecimal digits, Class has six (base class,
	// subclass, programming interface), in lower case without 0x: "8086", "10ca",
	// "020000". They are empty if the tree does not tell.
	Vendor, Device, Class string
	// Instance distinguishes the function from a later function at the same address: a
	// VF that was removed and created again is a different VF. Instance is the inode of
	// the function's sysfs directory, which the kernel uses only once per boot. It is
	// meaningless in another boot.
	Instance uint64
}

// IsPF reports whether the function is a physical function: one that can have VFs,
// whether they are enabled or not.
func (f Function) IsPF() bool { return f.PF == "" && (f.TotalVFs > 0 || len(f.VFs) > 0) }

// IsVF reports whether the function is a virtual function.
func (f Function) IsVF() bool { return f.PF != "" }

// Userspace reports whether the bound driver hands the function to a program or a
// virtual machine, so that it has no network device and needs none: uio_pci_generic,
// igb_uio, or a driver of [Function.VFIO].
func (f Function) Userspace() bool {
	switch f.Driver {
	case "uio_pci_generic", "igb_uio":
		return true
	}
	return f.VFIO()
}

// ethernet is the PCI class of Ethernet controllers, without the programming interface.
const ethernet = "0200"

// NeedsNetDev reports whether the PCI function at addr is useful only through a network
// device. This holds for an Ethernet function unless a userspace program drives it (see
// [Function.Userspace]) or its driver gives it an RDMA or vDPA device, through which it
// works without a network device. It also holds for an Ethernet function without a
// driver. The error is that of [FS.Function].
func (s FS) NeedsNetDev(addr string) (bool, error) {
	f, err := s.Function(addr)
	if err != nil || f.Userspace() || !strings.HasPrefix(f.Class, ethernet) {
		return false, err
	}
	n, err := openNode(s.device(f.Address))
	if err != nil {
		return false, fmt.Errorf("sriov: PCI function %s: %w", f.Address, err)
	}
	serves := slices.ContainsFunc(n.names, func(name string) bool {
		return name == "infiniband" || strings.HasPrefix(name, "vdpa")
	})
	return !serves, nil
}

// Function reads the PCI function at addr.
//
// The error wraps [ErrAddress] if addr is malformed. It satisfies errors.Is(err,
// [io/fs.ErrNotExist]) if the function does not exist or disappears during the read. If
// the device or the kernel lacks an attribute (driver, IOMMU group, NUMA node, SR-IOV),
// its field has the value documented for that; an attribute that exists but makes no
// sense is an error.
//
// The kernel links a VF to its PF shortly after the VF appears, and removes the link
// before the VF's driver is detached. In these moments the VF looks like a function
// that is neither PF nor VF. Callers that know that addr must be a VF should check
// IsVF.
func (s FS) Function(addr string) (*Function, error) {
	a, err := ParseAddress(addr)
	if err != nil {
		return nil, fmt.Errorf("sriov: %w", err)
	}
	var f *Function
	err = settle(func() error {
		f, err = s.function(a)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sriov: PCI function %s: %w", a, err)
	}
	return f, nil
}

// function reads the function once.
func (s FS) function(addr string) (*Function, error) {
	dir := s.device(addr)
	before, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	n, err := openNode(dir)
	if err != nil {
		return nil, err
	}
	f := &Function{
		Address:    addr,
		PF:         n.address("physfn"),
		VFIndex:    -1,
		TotalVFs:   n.number("sriov_totalvfs", 0),
		NumVFs:     n.number("sriov_numvfs", 0),
		Driver:     n.link("driver"),
		IOMMUGroup: n.link("iommu_group"),
		NUMANode:   n.number("numa_node", -1),
		Vendor:     n.id("vendor"),
		Device:     n.id("device"),
		Class:      n.id("class"),
		NetDevs:    s.netDevs(n),
		Instance:   instance(before),
	}
	if n.err != nil {
		return nil, n.err
	}
	if f.PF != "" {
		if f.VFIndex, err = s.vfIndex(f.PF, addr); err != nil {
			return nil, err
		}
	}
	if f.VFs, err = s.vfs(n, addr); err != nil {
		return nil, err
	}
	return f, unchanged(dir, before)
}

// instance returns the inode of a device's directory.
func instance(dir os.FileInfo) uint64 {
	if st, ok := dir.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// unchanged returns an error if dir is no longer the directory that it was when before
// was taken. In that case the absence of an entry would prove nothing.
func unchanged(dir string, before os.FileInfo) error {
	after, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !os.SameFile(before, after) {
		return fmt.Errorf("%s: replaced while it was read: %w", dir, fs.ErrNotExist)
	}
	return nil
}

// maxVFs is the largest number of VFs: NumVFs is a 16-bit register.
const maxVFs = 1<<16 - 1

// virtfnIndex returns N of a virtfnN link.
func virtfnIndex(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "virtfn")
	if !ok {
		return 0, false
	}
	i, err := strconv.Atoi(digits)
	return i, err == nil && 0 <= i && i < maxVFs
}

// vfIndex returns the index at which the PF links to the VF. A VF without such a link
// is being removed.
func (s FS) vfIndex(pf, vf string) (int, error) {
	n, err := openNode(s.device(pf))
	if err != nil {
		return -1, err
	}
	for _, name := range n.names {
		i, ok := virtfnIndex(name)
		if !ok {
			continue
		}
		if base, err := linkBase(filepath.Join(n.dir, name)); err == nil && strings.EqualFold(base, vf) {
			return i, nil
		}
	}
	return -1, fmt.Errorf("no virtfn link of PF %s leads back to VF %s: %w", pf, vf, fs.ErrNotExist)
}

// vfs returns the VFs of the function pf by index. It leaves an index empty if its VF
// is gone or does not name pf as its physical function.
func (s FS) vfs(n *node, pf string) ([]string, error) {
	var out []string
	for _, name := range n.names {
		i, ok := virtfnIndex(name)
		if !ok {
			continue
		}
		base, err := linkBase(filepath.Join(n.dir, name))
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		vf, err := ParseAddress(base)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(n.dir, name), err)
		}
		if back, err := linkBase(filepath.Join(s.device(vf), "physfn")); err != nil || !strings.EqualFold(back, pf) {
			continue
		}
		if i >= len(out) {
			out = slices.Grow(out, i+1-len(out))[:i+1]
		}
		out[i] = vf
	}
	return out, nil
}
