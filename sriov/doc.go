// Package sriov answers questions about PCI functions, SR-IOV virtual functions
// (VFs) and network devices from a sysfs tree, and restores VFs after use.
//
// Start with [FS.Function]. Given the PCI address of a device, it tells whether the
// device is a physical function (PF) or a VF, and for a VF its PF and index. It also
// tells the driver, the IOMMU group, the NUMA node and the network devices.
// [FS.FunctionNamed] takes a device plugin's ID, which may be the name of a network
// device instead. [FS.PFNetDev] finds the network device of a VF's PF, where the kernel
// keeps the VF's VLAN, MAC, trust and rates. [FS.OfNetDev] goes the other way, from the
// name of a network device to its PCI function. [FS.Auxiliary] resolves subfunctions,
// and [FS.VFIONode] finds the device node of a function that a userspace program
// drives. [CompareIDs] defines the order in which several devices of one resource are
// handed out.
//
//	var sys sriov.FS // the running kernel's /sys
//	f, err := sys.Function("0000:21:10.2")
//	switch {
//	case errors.Is(err, fs.ErrNotExist): // no such device on this node (any more)
//	case err != nil:
//	case f.IsVF():
//		fmt.Println("VF", f.VFIndex, "of", f.PF)
//	}
//
// # Restoring a VF
//
// The settings that a PF keeps for a VF outlive the VF's user: VLAN, MAC, spoof check,
// trust, link state, rates and GUIDs are forced on the next user. A [Host] is a sysfs
// tree together with its network devices. [Host.Snapshot] records the state of a device
// before it is used, [Snapshot.Compare] tells what has changed, and [Host.Reset]
// restores the recorded state and checks the result. [Host.Wait] waits, without
// polling, for what the kernel does in its own time, such as returning the network
// device of a deleted network namespace.
//
//	var host sriov.Host // the running kernel's
//	before, err := host.Snapshot("0000:21:10.2")
//	... // the VF is used
//	_, err = host.Wait(ctx, "0000:21:10.2", sriov.HasNetDev)
//	changed, err := host.Reset("0000:21:10.2", before)
//
// A snapshot can be stored as JSON. Without one, [Snapshot.Neutral] tells what an
// unused VF looks like. [Host.Snapshots] records many functions with one query per PF.
//
// A VF that was removed and created again has the same address and index, but is a
// different VF. [Snapshot.SameFunction] tells the two apart, and Reset leaves the new
// one alone.
//
// # What sysfs can and cannot tell
//
// Everything is read at the moment of the call; nothing is cached. The tree changes
// under the reader when somebody writes sriov_numvfs, unbinds a driver or unplugs a
// device. A function that disappears or is replaced during a read is read again. If it
// does not settle, the error satisfies errors.Is(err, [io/fs.ErrNotExist]). A VF is
// reported as a VF only if both directions agree: its physfn link names the PF, and one
// of the PF's virtfnN links names the VF.
//
// Network devices are listed per network namespace: a sysfs mount shows those of the
// namespace in which it was mounted. A VF whose network device was moved into a pod has
// none in the host's sysfs. The absence of a network device is therefore never evidence
// that a device is free.
//
// # Errors
//
// The error for something that does not exist, or no longer, satisfies errors.Is(err,
// [io/fs.ErrNotExist]); for a network device looked up by netlink it is [ErrNoLink].
// [ErrAddress] means that a string is not a PCI address, [ErrNotVF] that a function is
// not a VF, [ErrNotPCI] that a network device has no PCI function, [ErrOmitted] that a
// PF says nothing about a VF at present, and [ErrReplaced] that a VF was created anew.
// [ResetError] lists what could not be restored, and [NodeError] tells what was found
// in place of a device node.
//
// # Privileges and concurrency
//
// Reading needs no privilege. Changing a setting needs CAP_NET_ADMIN in the network
// namespace that holds the network device. [FS] and [Host] have no state and are safe
// for concurrent use. But [Kernel] works in the network namespace of its thread, and
// two callers must not reset the same VF at once.
//
// # How netlink is used
//
// [Kernel] asks for one network device at a time, with its VFs but without their
// statistics: one request, one response. It uses a dump, which the kernel interrupts
// when devices come and go, only for a PF whose single response would be too long for
// the kernel. It decodes the response itself, because the netlink library is wrong
// about VFs and gives up at 64 KiB (package
// [github.com/manifold-cni/manifold/sriov/rtnl]). It listens for changes and never
// polls for them.
//
// The package needs only the standard library, golang.org/x/sys and a netlink library,
// and is small enough to be linked into a CNI plugin. Package
// [github.com/manifold-cni/manifold/sriov/inventory] lists a whole node. Package
// [github.com/manifold-cni/manifold/sriov/sriovtest] builds sysfs trees, and the
// network devices in them, for tests and demonstrations.
package sriov
