package sriov

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Auxiliary is a device on the auxiliary bus, in practice a subfunction: a slice
// of a PCI function with a network device of its own but no PCI address.
type Auxiliary struct {
	// ID is the device's name on the bus, module.kind.number: mlx5_core.sf.2.
	ID string
	// Parent is the address of the PCI function that the device is a slice of.
	Parent string
	// NetDevs are the device's network devices, as in [Function.NetDevs].
	NetDevs []string
	// Driver is the name of the bound driver, or empty.
	Driver string
	// SFNum is the number that the administrator gave to the subfunction, or -1 if the
	// device is not a subfunction.
	SFNum int
}

// Auxiliary reads the auxiliary device with the given name on the bus. Its errors are
// those of [FS.Function], plus [io/fs.ErrInvalid] for a malformed ID and [ErrNotPCI]
// for a device whose parent is not a PCI function.
func (s FS) Auxiliary(id string) (*Auxiliary, error) {
	if !IsAuxiliary(id) {
		return nil, fmt.Errorf("sriov: %s is not an auxiliary device ID: %w", quote(id), fs.ErrInvalid)
	}
	var a *Auxiliary
	err := settle(func() (err error) {
		a, err = s.auxiliary(id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sriov: auxiliary device %s: %w", id, err)
	}
	return a, nil
}

func (s FS) auxiliary(id string) (*Auxiliary, error) {
	bus := s.path("bus/auxiliary/devices")
	link := filepath.Join(bus, id)
	target, err := os.Readlink(link)
	if err != nil {
		return nil, err
	}
	before, err := os.Stat(link)
	if err != nil {
		return nil, err
	}
	n, err := openNode(link)
	if err != nil {
		return nil, err
	}
	parent, err := s.pciAncestor(filepath.Join(bus, target))
	if err != nil {
		return nil, err
	}
	a := &Auxiliary{
		ID: id, Parent: parent, NetDevs: n.children("net"),
		Driver: n.link("driver"), SFNum: n.number("sfnum", -1),
	}
	if n.err != nil {
		return nil, n.err
	}
	slices.SortFunc(a.NetDevs, CompareIDs)
	return a, unchanged(link, before)
}

// IsAuxiliary reports whether id has the form of an auxiliary device's name,
// module.kind.number: letters, digits, '_' and '-' in the first two parts, digits in
// the last, and at most 64 bytes in total.
func IsAuxiliary(id string) bool {
	const limit = 64
	parts := strings.Split(id[:min(len(id), limit+1)], ".")
	if len(id) > limit || len(parts) != 3 {
		return false
	}
	for _, part := range parts {
		if part == "" || strings.TrimLeft(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			return false
		}
	}
	return strings.TrimLeft(parts[2], "0123456789") == ""
}
