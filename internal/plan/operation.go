package plan

import (
	"context"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// Operation tells how one call of the plugin went, for metrics, logs and traces. It
// names no pod: a [Report] does.
type Operation struct {
	Version int    `json:"version"`
	Request string `json:"request,omitempty"` // ID of the call: 32 hexadecimal digits, in the logs of plugin and agent
	Verb    string `json:"verb"`
	Failed  bool   `json:"failed,omitempty"`
	// Kind is the kind of the failure.
	Kind  cnierr.Kind `json:"kind,omitempty"`
	Took  Micros      `json:"took"`
	Steps []Step      `json:"steps,omitempty"` // in order of their ends, at most MaxSteps
	// Differed are the fields in which interfaces were not as planned, whether or not
	// that failed the call.
	Differed []string `json:"differed,omitempty"`
}

// MaxSteps is the maximum number of steps in an operation. A garbage collection has as
// many as there are sandboxes.
const MaxSteps = 128

// Names of steps.
const (
	StepLock     = "lock"     // wait for another operation on the sandbox
	StepPlan     = "plan"     // ask for the plan, including the wait for the default network
	StepVersion  = "version"  // ask one delegate which versions it supports
	StepJournal  = "journal"  // write the journal's first record
	StepDelegate = "delegate" // one run of one delegate
	StepVerify   = "verify"   // look at an attachment's interface and compare
	StepCarrier  = "carrier"  // check the carrier of an attachment's interface, including the wait for it
	StepUndo     = "undo"     // one run of one delegate that undoes an attachment
)

// Step is a part of an operation.
type Step struct {
	Name   string `json:"name"`
	Plugin string `json:"plugin,omitempty"` // the delegate's program
	// Attachment is an index into the plan's attachments, 0 for steps that concern none
	// or the first.
	Attachment int    `json:"at,omitempty"`
	Failed     bool   `json:"failed,omitempty"`
	Began      Micros `json:"began"` // since the operation began
	Took       Micros `json:"took"`
}

// Micros is a duration in microseconds. On the wire it is half as long as one in
// nanoseconds.
type Micros int64

// Duration returns m as a time.Duration.
func (m Micros) Duration() time.Duration { return time.Duration(m) * time.Microsecond }

// Observer is a [Planner] that accepts operations without a report.
type Observer interface {
	// Observe delivers an operation without waiting; it may be lost.
	Observe(ctx context.Context, op Operation)
}

// Observe implements [Observer]. It does not wait for the agent, and without an agent
// the operation is lost: no verb takes longer for a statistic.
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

// observeTime is the time limit for handing over an operation.
const observeTime = 100 * time.Millisecond

// Observe implements [Observer] if First does. Then is a program that runs for one call
// and would forget the operation.
func (f *Fallback) Observe(ctx context.Context, op Operation) {
	if o, ok := f.First.(Observer); ok {
		o.Observe(ctx, op)
	}
}
