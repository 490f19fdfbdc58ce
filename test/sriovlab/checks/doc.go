// Package checks is what the SR-IOV lab checks: tests that run as root inside a
// guest with real SR-IOV functions, where they may do anything, since the guest
// ends with them. They have the build tag sriovlab; `make test-sriov` runs them,
// and `go run ./test/sriovlab -run NAME` some of them.
//
// The guest has two PFs with seven VFs each (Intel igb and igbvf, emulated), each
// PF on a NUMA node of its own, an IOMMU, the containernetworking plugins in
// /opt/cni/bin and our programs in /opt/manifold.
package checks

// ResetNow is what a check prints when the machine may lose its power.
const ResetNow = "the machine may be reset now"

// BudgetVariable is the environment variable that says how long checks that repeat
// the same may do so.
const BudgetVariable = "LAB_REPEAT"
