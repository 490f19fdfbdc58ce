//go:build sriovlab

package checks

import "testing"

// TestClauseVF proves the clauses of verification that need real VFs, each in a subtest
// named by its ID; docs/conformance.md lists all clauses.
func TestClauseVF(t *testing.T) {
	t.Run("VF-pf", propertiesOnThePF)
	t.Run("VF-userspace", func(t *testing.T) {
		t.Run("no interface", userspaceWithoutInterface)
		t.Run("on the PF", userspaceOnThePF)
	})
	t.Run("VF-returned", returnsAsItWas)
}
