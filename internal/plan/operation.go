package plan

import (
	"context"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// Operation is how one call of the plugin went, for metrics, logs and traces. It
// names no pod: a [Report] does.
type Operation struct {
	Version int    `json:"version"`
	Request string `json:"request,omitempty"` // the call's ID: 32 hexadecimal digits, in the plugin's log and the agent's
	Verb    string `json:"verb"`
	Failed  bool   `json:"failed,omitempty"`
	// Kind is that of the failure.
	Kind  cnierr.Kind `json:"kind,omitempty"`
	Took  Micros      `json:"took"`
	Steps []Step      `json:"steps,omitempty"` // in order of their ends, at most MaxSteps
	// Differed are the fields in which interfaces were not as planned, whether that
	// failed the call or not.
	Differed []string `json:"differed,omitempty"`
}

// MaxSteps bounds the steps of an operation: a garbage collection has as many as
// there are sandboxes.
const MaxSteps = 128

// Names of steps.
const (
	StepLock     = "lock"     // wait for another operation on the sandbox
	StepPlan     = "plan"     // ask for the plan, wait for the default network included
	StepVersion  = "version"  // ask one delegate which versions it speaks
	StepJournal  = "journal"  // write the journal's first record
	StepDelegate = "delegate" // one run of one delegate
	StepVerify   = "verify"   // look at an attachment's interface and compare
	StepCarrier  = "carrier"  // look for the carrier of an attachment's interface, wait for it included
	StepUndo     = "undo"     // one run of one delegate that takes back what was attached
)

// Step is a part of an operation.
type Step struct {
	Name   string `json:"name"`
	Plugin string `json:"plugin,omitempty"` // the delegate's program
	// Attachment is an index into the plan's attachments, 0 for steps that concern
	// none or the first.
	Attachment int    `json:"at,omitempty"`
	Failed     bool   `json:"failed,omitempty"`
	Began      Micros `json:"began"` // since the operation began
	Took       Micros `json:"took"`
}

// Micros is a duration in microseconds: on the wire half as long as one in
// nanoseconds.
type Micros int64

// Duration returns m as a time.Duration.
func (m Micros) Duration() time.Duration { return time.Duration(m) * time.Microsecond }

// Observer is a [Planner] that takes operations of which there is no report.
type Observer interface {
	// Observe takes an operation, now or never.
	Observe(ctx context.Context, op Operation)
}

// Observe implements [Observer]. It does not wait for the agent, and without one
// the operation is lost: no verb takes longer for what is only counted.
func (c Client) Observe(ctx context.Context, op Operation) {
	ctx, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = writeFrame(conn, call{Op: opObserve, Operation: &op}.fields())
}

// observeTime bounds handing an operation over.
const observeTime = 100 * time.Millisecond

// Observe implements [Observer] where First does. A program that is run for one
// call could keep nothing of it.
func (f *Fallback) Observe(ctx context.Context, op Operation) {
	if o, ok := f.First.(Observer); ok {
		o.Observe(ctx, op)
	}
}
