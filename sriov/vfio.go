package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// VFIO reports whether the function is bound to vfio-pci or to a vendor's variant of it
// (mlx5_vfio_pci, hisi-acc-vfio-pci and others, which all have that ending). A program
// or a virtual machine reaches such a function through its VFIO device node.
func (f Function) VFIO() bool {
	return strings.HasSuffix(strings.ReplaceAll(f.Driver, "-", "_"), "vfio_pci")
}

// NodeError reports what was found in place of a device node.
type NodeError struct {
	Path  string // of the node, below the root of the tree
	Found string // what was found, in words
}

// Error names the path and what was found there.
func (e *NodeError) Error() string { return fmt.Sprintf("device node %s: found %s", e.Path, e.Found) }

// VFIONode returns the path, below the root of the tree, of the device node through
// which programs reach a function that is bound to VFIO. That is the node of its IOMMU
// group (/dev/vfio/15, or /dev/vfio/noiommu-15 without an IOMMU), or the function's own
// node if the kernel has no groups (/dev/vfio/devices/vfio3).
//
// The node must be a character device with the number that the kernel lists in sysfs;
// otherwise the error is a [*NodeError]. The directory dev below the root must be the
// host's, because a container has its own.
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

// vfioNode returns a function's device node and its number, as the kernel lists them.
// If the kernel lists none, the path is that of the group.
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

// nodeAt describes what is at path if it is not the character device with that number.
// It returns an empty string if it is.
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
		return "something other than a character device"
	case number == "":
		return is + ", unknown to VFIO"
	case is != "character device "+number:
		return is + ", not " + number
	}
	return ""
}
