package attach

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Times takes down how one call goes, for the agent to show. A nil *Times takes
// down nothing.
type Times struct {
	ID    string // the call's, in every log line of it
	began time.Time
	op    plan.Operation
	told  bool // a report has had it
}

// NewTimes begins a call of a verb, and gives it its ID.
func NewTimes(verb string) *Times {
	id := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	return &Times{ID: id, began: time.Now(), op: plan.Operation{Version: plan.Version, Request: id, Verb: verb}}
}

// step begins a step of attachment i; the function returned ends it.
func (t *Times) step(name, plugin string, i int) (done func(error)) {
	if t == nil {
		return func(error) {}
	}
	began := time.Now()
	return func(err error) {
		if len(t.op.Steps) < plan.MaxSteps {
			t.op.Steps = append(t.op.Steps, plan.Step{
				Name: name, Plugin: plugin, Attachment: i, Failed: err != nil, Began: micros(began.Sub(t.began)), Took: micros(time.Since(began)),
			})
		}
	}
}

// differed takes down in which field an interface is not as planned.
func (t *Times) differed(field string) {
	if t != nil && len(t.op.Differed) < plan.MaxSteps {
		t.op.Differed = append(t.op.Differed, field)
	}
}

// end returns the operation that ended with err.
func (t *Times) end(err error) plan.Operation {
	op := t.op
	op.Took, op.Failed, op.Kind = micros(time.Since(t.began)), err != nil, cnierr.KindOf(err)
	return op
}

func micros(d time.Duration) plan.Micros { return plan.Micros(d.Microseconds()) }

// Done tells the agent how the call went that ends with err, unless a report did.
func (e *Engine) Done(err error) {
	t := e.Times
	if t == nil || t.told {
		return
	}
	if o, ok := e.Planner.(plan.Observer); ok {
		o.Observe(context.Background(), t.end(err))
	}
}
