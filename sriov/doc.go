// Package sriov answers questions about PCI functions, SR-IOV virtual functions
// (VFs) and network devices from a sysfs tree, and gives a VF back as it was.
//
// Start with [FS.Function]: given the PCI address of a device it says whether it
// is a physical function (PF) or a VF, of which PF and at which index, to which
// driver and IOMMU group it is bound, on which NUMA node it sits, and which
// network devices stand on it; [FS.FunctionNamed] takes a device plugin's ID, which may
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
// # Giving a VF back as it was
//
// What a PF keeps for a VF outlives whoever used it: VLAN, MAC, spoof check, trust,
// link state, rates and GUIDs are forced on the next user. A [Host] is a sysfs tree with
// its network devices. [Host.Snapshot] takes down how a device stands before it is
// used, [Snapshot.Compare] says what is otherwise now, [Host.Reset] makes it so
// again and looks whether it is, and [Host.Wait] waits without polling for what the
// kernel does in its own time, such as giving back the network device of a network
// namespace that is gone.
//
//	var host sriov.Host // the running kernel's
//	before, err := host.Snapshot("0000:21:10.2")
//	... // the VF is used
//	_, err = host.Wait(ctx, "0000:21:10.2", sriov.HasNetDev)
//	changed, err := host.Reset("0000:21:10.2", before)
//
// A snapshot can be kept as JSON. Where there is none, [Snapshot.Neutral] is what a
// VF that nobody uses looks like. [Host.Snapshots] takes down many functions with one
// question to each PF.
//
// A VF that was removed and made again has the address and index that it had, and is
// another one: [Snapshot.SameFunction] tells, and Reset leaves it alone.
//
// # What sysfs can and cannot tell
//
// Everything is read at the moment of the call; nothing is cached. The tree
// changes under the reader when somebody writes sriov_numvfs, unbinds a driver
// or unplugs a device. A function that goes away or is replaced while it is read
// is read again, and if it does not come to rest the error satisfies
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
// That something is not there (any more) satisfies errors.Is(err, [io/fs.ErrNotExist]);
// of a network device that netlink is asked for it is [ErrNoLink]. [ErrAddress] is a string
// that is no PCI address, [ErrNotVF] a function that is no VF, [ErrNotPCI] a network device
// that stands on none, [ErrOmitted] a VF of which its PF says nothing now, [ErrReplaced] one
// that was made anew. [ResetError] has what could not be made as it was, [NodeError] what
// stands where a device node should be.
//
// # Who may, and from where
//
// Everybody may read. To set something takes CAP_NET_ADMIN in the network namespace that
// has the network device. [FS] and [Host] have no state and may be used by several at
// once; but [Kernel] asks in the network namespace of its thread, and two must not reset
// one VF.
//
// # What netlink is asked
//
// [Kernel] asks for one network device at a time, with its VFs and without their
// statistics: one question, one answer. It makes no dump, which the kernel interrupts
// when devices come and go meanwhile, but for a PF whose answer the kernel finds too long
// otherwise; and it reads the answer itself where the netlink library is wrong about VFs.
// Changes are heard and never polled for.
//
// The package needs the standard library and a netlink library, and is small enough
// to be linked into a CNI plugin. Package [github.com/manifold-cni/manifold/sriov/inventory]
// lists a whole node; package
// [github.com/manifold-cni/manifold/sriov/sriovtest] builds sysfs trees, and the
// network devices in them, for tests and demonstrations.
package sriov
