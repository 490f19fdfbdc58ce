//go:build sriovlab

package checks

import "testing"

// TestClauseVF proves the clauses of verification that only real VFs can prove,
// each under its id; docs/conformance.md has them all.
func TestClauseVF(t *testing.T) {
	t.Run("VF-pf", propertiesOnThePF)
	t.Run("VF-userspace", func(t *testing.T) {
		t.Run("no interface", userspaceWithoutInterface)
		t.Run("on the PF", userspaceOnThePF)
	})
	t.Run("VF-returned", returnsAsItWas)
}
