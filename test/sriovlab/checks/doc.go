// Package checks contains the checks of the SR-IOV lab: tests that run as root in a
// guest with real SR-IOV functions. They may do anything, since the guest is thrown
// away. They have the build tag sriovlab; `make test-sriov` runs all of them, and `go
// run ./test/sriovlab -run NAME` some of them.
//
// The guest has two PFs with seven VFs each (Intel igb and igbvf, emulated), each PF on
// a NUMA node of its own, an IOMMU, the containernetworking plugins in /opt/cni/bin and
// our programs in /opt/manifold.
//
// The guest's processors are emulated, and a program takes ten times as long to start
// there. To keep a run within minutes, each thing that can go wrong is by default tried
// once instead of in many combinations. For example, a VF vanishes before, during and
// after ADD, by each of three causes: the number of VFs is written, the PF is removed,
// its driver is unbound. These make seven ways, and each way is tried at one of the
// three times at least, not at every time. The lab's flag -full tries them all, and
// -repeat says how long checks that only repeat rounds go on. The networks wait for no
// carrier unless a check is about carriers.
package checks

// ResetNow is the line that a check prints when the machine may lose its power.
const ResetNow = "the machine may be reset now"

// FullVariable is the environment variable that, if "true", makes checks run in every
// way.
const FullVariable = "LAB_FULL"

// BudgetVariable is the environment variable that says how long checks that repeat the
// same may go on.
const BudgetVariable = "LAB_REPEAT"
