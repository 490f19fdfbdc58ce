package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// VFIO reports whether the function is bound to vfio-pci or a vendor's variant of
// it (mlx5_vfio_pci, hisi-acc-vfio-pci and others, all of which end so): a program
// or a virtual machine reaches it through its VFIO device node.
func (f Function) VFIO() bool {
	return strings.HasSuffix(strings.ReplaceAll(f.Driver, "-", "_"), "vfio_pci")
}

// NodeError says what stands where a device node should be.
type NodeError struct {
	Path  string // of the node, below the root of the tree
	Found string // in words
}

// Error names the path and what is there.
func (e *NodeError) Error() string { return fmt.Sprintf("device node %s: found %s", e.Path, e.Found) }

// VFIONode returns the path, below the root of the tree, of the device node through
// which programs reach a function that is bound to VFIO: its IOMMU group's
// (/dev/vfio/15), which without an IOMMU has another name (/dev/vfio/noiommu-15), or
// where the kernel has no groups the function's own (/dev/vfio/devices/vfio3).
//
// What is there must be a character device with the number that the kernel gives it
// in sysfs. Otherwise the error is a [*NodeError]. The directory dev of the root must
// be the host's: a container has its own.
func (s FS) VFIONode(f Function) (string, error) {
	path, number, err := s.vfioNode(f)
	if err != nil {
		return "", fmt.Errorf("sriov: PCI function %s: %w", f.Address, err)
	}
	if found := s.nodeAt(path, number); found != "" {
		return "", fmt.Errorf("sriov: PCI function %s: %w", f.Address, &NodeError{Path: path, Found: found})
	}
	return path, nil
}

// vfioNode returns a function's node and its number, both as the kernel has them.
// Where it has none, the path is that of the group.
func (s FS) vfioNode(f Function) (path, number string, err error) {
	for _, name := range []string{f.IOMMUGroup, "noiommu-" + f.IOMMUGroup} {
		number, err = readAttr(s.path("class/vfio/" + name + "/dev"))
		if f.IOMMUGroup != "" && !errors.Is(err, fs.ErrNotExist) {
			return "/dev/vfio/" + name, number, err
		}
	}
	own := filepath.Join(s.device(f.Address), "vfio-dev")
	names, err := list(own)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	for _, name := range names {
		number, err = readAttr(filepath.Join(own, name, "dev"))
		if !errors.Is(err, fs.ErrNotExist) {
			return "/dev/vfio/devices/" + name, number, err
		}
	}
	return "/dev/vfio/" + f.IOMMUGroup, "", nil
}

// nodeAt says what stands at path instead of the character device with that number,
// empty where it is that.
func (s FS) nodeAt(path, number string) string {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join("/", s.Root, path), &st)
	is := fmt.Sprintf("character device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "none"
	case err != nil:
		return err.Error()
	case st.Mode&unix.S_IFMT != unix.S_IFCHR:
		return "what is no character device"
	case number == "":
		return is + ", of which VFIO knows nothing"
	case is != "character device "+number:
		return is + ", not " + number
	}
	return ""
}
