//go:build sriovlab

package checks

import "testing"

func TestBoots(t *testing.T) {}
