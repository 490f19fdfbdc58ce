package plan

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// MaxMessage is the maximum size of a message on the socket or a pipe, in bytes. It is
// many times what the planner accepts of configurations in one plan.
const MaxMessage = 32 << 20

// errTooLarge is the error for a message larger than MaxMessage.
var errTooLarge = errors.New("message too large")

// Operations of the protocol.
const (
	opPlan    = "plan"
	opReport  = "report"
	opStatus  = "status"
	opInspect = "inspect"
	opPing    = "ping"    // asks nothing
	opObserve = "observe" // nobody waits for the answer
)

// call is one request on the wire. Exactly one of the pointers is set for operations
// that take an argument.
type call struct {
	Op      string   `json:"op"`
	Request *Request `json:"request,omitempty"`
	Report  *Report  `json:"report,omitempty"`
	// Status goes with opStatus. Older callers do not set it.
	Status *StatusQuery `json:"status,omitempty"`
	// Question goes with opInspect, Operation with opObserve.
	Question  *Question  `json:"question,omitempty"`
	Operation *Operation `json:"operation,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (c call) MarshalJSON() ([]byte, error) { return json.Marshal(c.fields()) }

// fields returns the set fields of a call for encoding. Given a struct, encoding/json
// prepares every type below it, used or not, which in a process with a single call
// takes longer than the call.
func (c call) fields() map[string]any {
	fields := map[string]any{"op": c.Op}
	if c.Request != nil {
		fields["request"] = c.Request
	}
	if c.Report != nil {
		fields["report"] = c.Report
	}
	if c.Status != nil {
		fields["status"] = c.Status
	}
	if c.Question != nil {
		fields["question"] = c.Question
	}
	if c.Operation != nil {
		fields["operation"] = c.Operation
	}
	return fields
}

// answer is one response on the wire: a plan, a network configuration, a document for
// people, an error, or nothing.
type answer struct {
	Plan     *Plan           `json:"plan,omitempty"`
	Config   json.RawMessage `json:"config,omitempty"`
	Document json.RawMessage `json:"document,omitempty"`
	Error    *cnierr.Error   `json:"error,omitempty"`
}

// writeFrame writes v as JSON, preceded by its length in four bytes, big endian.
func writeFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("%w: %d bytes exceed %d", errTooLarge, len(body), MaxMessage)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// readFrame reads into v what writeFrame wrote.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("%w: %d bytes exceed %d", errTooLarge, n, MaxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// errTransport marks failures to reach a planner or to understand its answer. Only
// these, not a planner's own refusal, justify asking another planner.
var errTransport = errors.New("planner not reached")

// IsTransport reports whether err says that a planner could not be reached, as opposed
// to one that was reached and refused.
func IsTransport(err error) bool { return errors.Is(err, errTransport) }

// transportError returns a retryable error of op caused by err. When the planner did
// not answer within the time limit, it is waiting for somebody else.
func transportError(op string, err error) error {
	e := cnierr.New(op, cnierr.TryAgain, "%w: %w", errTransport, err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return e.WithFix("check the agent's readiness and log: it may be waiting for the API server")
	}
	return e
}

// refusal returns the error of an answer, nil when it has none.
func (a answer) refusal() error {
	if a.Error == nil {
		return nil
	}
	return a.Error
}

// plan returns the plan of an answer, and an error when the answer holds no usable
// plan.
func (a answer) plan() (*Plan, error) {
	if a.Plan == nil || len(a.Plan.Attachments) == 0 {
		return nil, transportError("read plan", errors.New("the answer holds no attachment"))
	}
	if a.Plan.Version < 1 || a.Plan.Version > Version {
		return nil, transportError("read plan", fmt.Errorf("plan version %d is not in 1..%d", a.Plan.Version, Version))
	}
	return a.Plan, nil
}
