// Package sriov answers questions about PCI functions, SR-IOV virtual functions
// (VFs) and network devices from a sysfs tree, and restores VFs after use.
//
// Start with [FS.Function]: given the PCI address of a device it says whether it
// is a physical function (PF) or a VF, of which PF and at which index, to which
// driver and IOMMU group it is bound, on which NUMA node it sits, and which
// network devices it has; [FS.FunctionNamed] takes a device plugin's ID, which may
// be a network device's name instead. [FS.PFNetDev] finds the network device of a VF's
// PF, which is where the kernel keeps the VF's VLAN, MAC, trust and rates;
// [FS.OfNetDev] goes the other way, from a network device's name to its PCI
// function; [FS.Auxiliary] resolves subfunctions; [FS.VFIONode] finds the device node
// of a function that a program drives. [CompareIDs] is the order of
// device IDs used wherever several devices of one resource are handed out.
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
// What a PF keeps for a VF outlives the VF's user: VLAN, MAC, spoof check, trust,
// link state, rates and GUIDs are forced on the next one. A [Host] is a sysfs tree with
// its network devices. [Host.Snapshot] records the state of a device before it is
// used, [Snapshot.Compare] says what has changed, [Host.Reset] restores that state
// and checks the result, and [Host.Wait] waits without polling for what the
// kernel does in its own time, such as giving back the network device of a network
// namespace that is gone.
//
//	var host sriov.Host // the running kernel's
//	before, err := host.Snapshot("0000:21:10.2")
//	... // the VF is used
//	_, err = host.Wait(ctx, "0000:21:10.2", sriov.HasNetDev)
//	changed, err := host.Reset("0000:21:10.2", before)
//
// A snapshot can be kept as JSON. Where there is none, [Snapshot.Neutral] is what an
// unused VF looks like. [Host.Snapshots] records many functions with one question to
// each PF.
//
// A VF that was removed and created again has the same address and index, but is a
// different one: [Snapshot.SameFunction] tells them apart, and Reset leaves it alone.
//
// # What sysfs can and cannot tell
//
// Everything is read at the moment of the call; nothing is cached. The tree
// changes under the reader when somebody writes sriov_numvfs, unbinds a driver
// or unplugs a device. A function that goes away or is replaced while it is read
// is read again; if it does not settle, the error satisfies
// errors.Is(err, [io/fs.ErrNotExist]). A VF is reported as one only if both
// directions agree: its physfn link names the PF, and one of the PF's virtfnN
// links names the VF.
//
// Network devices are listed per network namespace: a sysfs mount shows those of
// the namespace that it was mounted in, so a VF whose network device was moved to
// a pod has none in the host's sysfs. Absence of a network device is therefore
// never evidence that a device is free.
//
// # Errors
//
// The error for something that is not there (any more) satisfies
// errors.Is(err, [io/fs.ErrNotExist]); for a network device asked for by netlink it is
// [ErrNoLink]. [ErrAddress] means a string that is not a PCI address, [ErrNotVF] a
// function that is not a VF, [ErrNotPCI] a network device without a PCI function,
// [ErrOmitted] a VF about which its PF says nothing at present, and [ErrReplaced] a VF
// that was created anew. [ResetError] lists what could not be restored, and [NodeError]
// says what is there in place of a device node.
//
// # Privileges and concurrency
//
// Reading needs no privilege. Setting something needs CAP_NET_ADMIN in the network
// namespace that has the network device. [FS] and [Host] have no state and may be used
// concurrently; but [Kernel] asks in the network namespace of its thread, and one VF must
// not be reset by two callers at once.
//
// # What netlink is asked
//
// [Kernel] asks for one network device at a time, with its VFs but without their
// statistics: one question, one answer. It dumps, which the kernel interrupts when
// devices come and go, only for a PF whose single answer would be too long for the
// kernel; and it reads the answer itself, since the netlink library is wrong about VFs and
// gives up at 64 KiB (package [github.com/manifold-cni/manifold/sriov/rtnl]). It listens
// for changes, and never polls for them.
//
// The package needs only the standard library and a netlink library, and is small
// enough to be linked into a CNI plugin. Package [github.com/manifold-cni/manifold/sriov/inventory]
// lists a whole node; package
// [github.com/manifold-cni/manifold/sriov/sriovtest] builds sysfs trees, and the
// network devices in them, for tests and demonstrations.
package sriov
