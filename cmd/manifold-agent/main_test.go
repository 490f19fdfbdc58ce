package main

import (
	"io"
	"math"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestPlanOnceCollectsNoGarbage proves that the one-shot runs without the garbage
// collector, up to a limit.
func TestPlanOnceCollectsNoGarbage(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(math.MaxInt64)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	p := harness.NewPlace(t)
	p.Must(planOnce(t.Context(), &configfile.Agent{CNIDir: p.Dir, SysRoot: p.Dir}, strings.NewReader(""), io.Discard, io.Discard))
	if percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1); percent != -1 || limit != 64<<20 {
		t.Errorf("percent %d, limit %d", percent, limit)
	}
}
