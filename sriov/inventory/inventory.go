// Package inventory lists the network hardware of a node: every network-class PCI
// function, physical or virtual, with its NUMA node, and the node's NUMA topology.
//
// It joins the enumeration of ghw with the facts of package sriov. It is for programs
// that look at a whole node, such as an agent or a command-line tool. A program that
// only has one address to ask about should use package sriov alone, which is much
// smaller.
//
// Reading takes some milliseconds and touches only files below the given root. It
// neither needs nor fetches a PCI ID database (so there are IDs but no vendor names),
// runs no program, reads no environment variable, and prints nothing.
package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jaypipes/ghw"
	"github.com/jaypipes/pcidb"

	"github.com/manifold-cni/manifold/sriov"
)

// networkClass is the PCI base class of network controllers: Ethernet,
// InfiniBand, fabric and others.
const networkClass = "02"

// Inventory is a node's network hardware at the time of reading.
type Inventory struct {
	// Functions are the network-class PCI functions, sorted by address.
	Functions []Function
	// Nodes are the NUMA nodes, sorted by ID. Every ordinary machine has at least one.
	// Nodes is empty if the tree does not describe all of them. They are read from
	// sys/devices/system and proc/meminfo below the root.
	Nodes []Node
}

// Function is a network-class PCI function.
type Function struct {
	sriov.Function
	// Subvendor and Subdevice are the subsystem IDs, four hexadecimal digits in lower
	// case. They distinguish adapters with the same chip.
	Subvendor, Subdevice string
	// Revision is the silicon revision, two hexadecimal digits.
	Revision string
	// Bridge is the address of the PCI bridge above the function, or empty on a root
	// bus. Functions below the same bridge share its link.
	Bridge string
}

// Node is a NUMA node.
type Node struct {
	ID int
	// CPUs are the node's online logical processors, ascending.
	CPUs []int
	// Distances are the relative costs of reaching the nodes, in the order of
	// [Inventory].Nodes; 10 is local.
	Distances []int
	// MemoryBytes is the usable memory, in bytes.
	MemoryBytes int64
}

// Function returns the function at addr, regardless of case, and whether it exists.
func (inv *Inventory) Function(addr string) (Function, bool) {
	i, ok := slices.BinarySearchFunc(inv.Functions, addr, func(f Function, addr string) int {
		return sriov.CompareAddresses(f.Address, addr)
	})
	if !ok {
		return Function{}, false
	}
	return inv.Functions[i], true
}

// errChanging means that the tree changed during the read.
var errChanging = errors.New("PCI devices changed during the read")

// attempts limits how often a tree is read that changes during the read.
const attempts = 3

// Read takes the inventory of the tree at root, the directory that contains sys; empty
// means "/". A machine without PCI devices has an empty inventory; a root without sys
// is an error. Read retries when devices come and go, and finally returns an error: it
// never returns an incomplete inventory.
func Read(root string) (*Inventory, error) {
	root = filepath.Join("/", root)
	if _, err := os.Stat(filepath.Join(root, "sys")); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	var functions []Function
	err := errChanging
	for i := 0; i < attempts && errors.Is(err, errChanging); i++ {
		functions, err = readFunctions(root)
	}
	if err != nil {
		return nil, fmt.Errorf("inventory of %s: %w", root, err)
	}
	nodes, err := readNodes(root)
	if err != nil {
		return nil, fmt.Errorf("inventory of %s: NUMA nodes: %w", root, err)
	}
	return &Inventory{Functions: functions, Nodes: nodes}, nil
}

// options confine ghw to root. The empty PCI ID database keeps it from looking for one
// on disk and on the network. Topology is read separately, because ghw's PCI list needs
// it only for the NUMA node, which package sriov reads.
func options(root string) []any {
	return []any{
		ghw.WithChroot(root), ghw.WithPCIDB(&pcidb.PCIDB{}), ghw.WithDisableTopology(),
		ghw.WithDisableTools(), ghw.WithLogger(slog.New(slog.DiscardHandler)),
	}
}

func readFunctions(root string) ([]Function, error) {
	info, err := ghw.PCI(options(root)...)
	if err != nil {
		return nil, err
	}
	// ghw returns no devices at all if one of them cannot be read.
	if len(info.Devices) == 0 {
		return nil, checkEmpty(root)
	}
	var out []Function
	for _, d := range info.Devices {
		if d.Class.ID != networkClass {
			continue
		}
		f, err := sriov.FS{Root: root}.Function(d.Address)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", errChanging, err)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Function{
			Function: *f, Subvendor: d.Subsystem.VendorID, Subdevice: d.Subsystem.ID,
			Revision: strings.TrimPrefix(d.Revision, "0x"), Bridge: d.ParentAddress,
		})
	}
	slices.SortFunc(out, func(a, b Function) int { return sriov.CompareAddresses(a.Address, b.Address) })
	return out, nil
}

// checkEmpty returns nil if the tree has no PCI device.
func checkEmpty(root string) error {
	entries, err := os.ReadDir(filepath.Join(root, "sys/bus/pci/devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("%w: none of %d could be listed", errChanging, len(entries))
	}
	return err
}

// readNodes returns the NUMA nodes, or none if it cannot read all of them: ghw stops at
// the first node that it does not understand and returns those before it.
func readNodes(root string) ([]Node, error) {
	dir := filepath.Join(root, "sys/devices/system/node")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	want, err := fs.Glob(os.DirFS(dir), "node*")
	if err != nil {
		return nil, err
	}
	info, err := ghw.Topology(options(root)...)
	if err != nil {
		return nil, err
	}
	if len(info.Nodes) != len(want) {
		return nil, nil
	}
	var out []Node
	for _, n := range info.Nodes {
		node := Node{ID: n.ID, Distances: n.Distances, MemoryBytes: n.Memory.TotalUsableBytes}
		for _, core := range n.Cores {
			node.CPUs = append(node.CPUs, core.LogicalProcessors...)
		}
		slices.Sort(node.CPUs)
		out = append(out, node)
	}
	slices.SortFunc(out, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
