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

// Times takes down how one call goes, for the agent to show, and for the log in more
// detail. A nil *Times takes down nothing.
type Times struct {
	ID    string // the call's, in every log line of it
	began time.Time
	op    plan.Operation
	told  bool // a report has had it
	parts []part
	inner time.Duration // of the part under way, what parts within it took
}

// part is what a call spent with one thing, without what parts within it took.
type part struct {
	name  string
	took  time.Duration
	times int
}

// Parts of a call that are no steps: they are many, or end when the agent was told.
const (
	partRecord = "record" // append a line to the journal
	partLook   = "look"   // whether an interface of that name is in the sandbox
	partLibcni = "libcni" // what libcni does around its delegates, its record of an attachment above all
	partReport = "report" // tell the agent how it went, and wait until that is published
	partRead   = "read"   // read the journal
	partSeed   = "seed"   // compare libcni's record with the journal
	partClose  = "close"  // remove the journal, release the lock
)

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

// part begins a part; the function returned ends it.
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

// LogValue implements [slog.LogValuer]: the parts of the call, how long each took and
// how often it was there. What they leave of the whole is everything else.
func (t *Times) LogValue() slog.Value {
	var all []slog.Attr
	for _, p := range t.parts {
		all = append(all, slog.Group(p.name, "took", p.took, "times", p.times))
	}
	return slog.GroupValue(all...)
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
	defer t.part(partReport)()
	if o, ok := e.Planner.(plan.Observer); ok {
		o.Observe(context.Background(), t.end(err))
	}
}
