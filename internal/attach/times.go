package attach

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Times records how one call goes: its steps for the agent, and its parts for the log.
// A nil *Times records nothing.
type Times struct {
	ID    string // of the call, in every log line of it
	began time.Time
	op    plan.Operation
	told  bool // a report has carried op to the agent
	parts []part
	inner time.Duration // what the parts nested in the current one took
}

// part is the time that a call spent on one thing, without the parts nested in it.
type part struct {
	name  string
	took  time.Duration
	times int
}

// Parts of a call that are not steps: there are many of them, or they end after the
// agent was told.
const (
	partRecord = "record" // append a line to the journal
	partLook   = "look"   // check whether the sandbox has an interface of some name
	partLibcni = "libcni" // libcni's work around its delegates, above all its record of an attachment
	partReport = "report" // tell the agent how the call went, and wait until that is published
	partRead   = "read"   // read the journal
	partSeed   = "seed"   // compare libcni's record with the journal
	partClose  = "close"  // remove the journal, release the lock
)

// NewTimes begins recording a call of verb and gives the call its ID.
func NewTimes(verb string) *Times {
	id := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	return &Times{ID: id, began: time.Now(), op: plan.Operation{Version: plan.Version, Request: id, Verb: verb}}
}

// step begins a step of attachment i. The returned function ends the step.
func (t *Times) step(name, plugin string, i int) (done func(error)) {
	if t == nil {
		return func(error) {}
	}
	began, ended := time.Now(), t.part(name)
	return func(err error) {
		ended()
		if len(t.op.Steps) < plan.MaxSteps {
			t.op.Steps = append(t.op.Steps, plan.Step{
				Name: name, Plugin: plugin, Attachment: i, Failed: err != nil, Began: micros(began.Sub(t.began)), Took: micros(time.Since(began)),
			})
		}
	}
}

// part begins a part. The returned function ends the part.
func (t *Times) part(name string) (ended func()) {
	if t == nil {
		return func() {}
	}
	began, outer := time.Now(), t.inner
	t.inner = 0
	return func() {
		took := time.Since(began)
		i := slices.IndexFunc(t.parts, func(p part) bool { return p.name == name })
		if i < 0 {
			i, t.parts = len(t.parts), append(t.parts, part{name: name})
		}
		t.parts[i].took += took - t.inner
		t.parts[i].times++
		t.inner = outer + took
	}
}

// LogValue implements [slog.LogValuer]. It returns how long each part of the call took
// and how often it ran. The rest of the call's time belongs to no part.
func (t *Times) LogValue() slog.Value {
	var all []slog.Attr
	for _, p := range t.parts {
		all = append(all, slog.Group(p.name, "took", p.took, "times", p.times))
	}
	return slog.GroupValue(all...)
}

// differed records a field in which an interface is not as planned.
func (t *Times) differed(field string) {
	if t != nil && len(t.op.Differed) < plan.MaxSteps {
		t.op.Differed = append(t.op.Differed, field)
	}
}

// end returns the call's operation, given the call's error.
func (t *Times) end(err error) plan.Operation {
	op := t.op
	op.Took, op.Failed, op.Kind = micros(time.Since(t.began)), err != nil, cnierr.KindOf(err)
	return op
}

func micros(d time.Duration) plan.Micros { return plan.Micros(d.Microseconds()) }

// Done tells the agent how a call went that returned err, unless a report already has.
func (e *Engine) Done(err error) {
	t := e.Times
	if t == nil || t.told {
		return
	}
	defer t.part(partReport)()
	if o, ok := e.Planner.(plan.Observer); ok {
		o.Observe(context.Background(), t.end(err))
	}
}
