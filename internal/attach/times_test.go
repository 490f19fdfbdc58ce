package attach

import (
	"errors"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/plan"
)

// A nested part's time is not counted in the part around it, so all parts together take
// no longer than the call.
func TestPartsDoNotOverlap(t *testing.T) {
	times := NewTimes("ADD")
	outer := times.part(partLibcni)
	for range 3 {
		inner := times.step(plan.StepDelegate, "bridge", 0)
		time.Sleep(time.Millisecond)
		inner(errors.New("it failed"))
	}
	outer()
	var sum time.Duration
	count := map[string]int{}
	for _, p := range times.parts {
		sum += p.took
		count[p.name] = p.times
	}
	if whole := time.Since(times.began); sum > whole || sum < 3*time.Millisecond {
		t.Errorf("parts of %s together, in a call of %s", sum, whole)
	}
	if len(count) != 2 || count[partLibcni] != 1 || count[plan.StepDelegate] != 3 || len(times.op.Steps) != 3 {
		t.Errorf("parts %v, steps %v", count, times.op.Steps)
	}
	if got := times.LogValue().Group(); len(got) != 2 {
		t.Errorf("logged: %v", got)
	}
	(*Times)(nil).part(partLook)() // records nothing
}
