// Package checks is what the SR-IOV lab checks: tests that run as root inside a
// guest with real SR-IOV functions, where they may do anything, since the guest
// ends with them. They have the build tag sriovlab; `make test-sriov` runs them,
// and `go run ./test/sriovlab -run NAME` some of them.
//
// The guest has two PFs with seven VFs each (Intel igb and igbvf, emulated), each
// PF on a NUMA node of its own, an IOMMU, the containernetworking plugins in
// /opt/cni/bin and our programs in /opt/manifold.
//
// Every processor of the guest is emulated, and a program takes ten times as long to
// start there. So that the whole run stays within minutes, each thing that can go
// wrong is tried once by default, where the same thing could be tried in many
// combinations: a VF vanishes before, during and after ADD by each of the three
// causes (the number of VFs is written, the PF is removed, its driver is unbound),
// and each of the seven ways that these make occurs at one of the three times at
// least, instead of every way at every time. The lab's flag -full tries them all, and
// -repeat says how long what only counts rounds goes on. The networks wait for no
// carrier unless a check is about that.
package checks

// ResetNow is what a check prints when the machine may lose its power.
const ResetNow = "the machine may be reset now"

// FullVariable is the environment variable that says, as true, that checks are to run
// in every way.
const FullVariable = "LAB_FULL"

// BudgetVariable is the environment variable that says how long checks that repeat
// the same may do so.
const BudgetVariable = "LAB_REPEAT"
