package plan

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// observing is a planner that accepts operations.
type observing struct {
	fake
	ops chan Operation
}

func (o observing) Observe(_ context.Context, op Operation) { o.ops <- op }

func TestObserve(t *testing.T) {
	o := observing{ops: make(chan Operation, 1)}
	c := served(t, o)
	want := Operation{Version: Version, Request: "ab", Verb: "DEL", Failed: true, Kind: cnierr.Busy, Took: 7, Steps: []Step{{Name: StepLock, Began: 1, Took: 6}}}
	(&Fallback{First: c, Then: fake{}}).Observe(t.Context(), want)
	if got := <-o.ops; !slices.Equal(got.Steps, want.Steps) || got.Request != "ab" || got.Kind != cnierr.Busy || got.Took != 7 || !got.Failed {
		t.Errorf("%+v", got)
	}
	// Without an Observer, and without any planner, nothing fails.
	served(t, fake{}).Observe(t.Context(), want)
	Client{Socket: filepath.Join(t.TempDir(), "absent")}.Observe(t.Context(), want)
	(&Fallback{First: fake{}, Then: c}).Observe(t.Context(), want)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// The operation of a pod with three attachments is smaller than its plan.
func TestOperationIsSmall(t *testing.T) {
	op := Operation{Version: Version, Request: "0123456789abcdef0123456789abcdef", Verb: "ADD", Took: 123456}
	for i := range 3 {
		op.Steps = append(op.Steps, Step{Name: StepDelegate, Plugin: "host-device", Attachment: i, Began: 123456, Took: 123456},
			Step{Name: StepVerify, Attachment: i, Began: 123456, Took: 1234})
	}
	op.Steps = append(op.Steps, Step{Name: StepLock}, Step{Name: StepPlan, Took: 1234}, Step{Name: StepJournal, Began: 1234, Took: 5678})
	raw, err := json.Marshal(op)
	if err != nil || len(raw) > 768 {
		t.Errorf("%d bytes: %s, %v", len(raw), raw, err)
	}
}
