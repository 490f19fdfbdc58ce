package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Client is a Planner that asks the agent over its unix socket, with one connection per
// call.
type Client struct {
	Socket string // path of the agent's socket
}

// Plan implements [Planner].
func (c Client) Plan(ctx context.Context, req Request) (*Plan, error) {
	out, err := c.do(ctx, call{Op: opPlan, Request: &req})
	if err != nil {
		return nil, err
	}
	return out.plan()
}

// Report implements [Planner].
func (c Client) Report(ctx context.Context, r Report) error {
	_, err := c.do(ctx, call{Op: opReport, Report: &r})
	return err
}

// Status implements [Planner].
func (c Client) Status(ctx context.Context, q StatusQuery) (json.RawMessage, error) {
	out, err := c.do(ctx, call{Op: opStatus, Status: &q})
	return out.Config, err
}

// Ping returns nil when the agent accepts and answers a call, whatever the state of its
// sources.
func (c Client) Ping(ctx context.Context) error {
	_, err := c.do(ctx, call{Op: opPing})
	return err
}

// Inspect implements [Inspector].
func (c Client) Inspect(ctx context.Context, q Question) (json.RawMessage, error) {
	out, err := c.do(ctx, call{Op: opInspect, Question: &q})
	return out.Document, err
}

func (c Client) do(ctx context.Context, in call) (out answer, err error) {
	op := "ask agent at " + c.Socket
	conn, err := c.dial(ctx)
	if err != nil {
		return out, transportError(op, err)
	}
	defer conn.Close()
	if err := writeFrame(conn, in.fields()); err != nil {
		return out, transportError(op, err)
	}
	if err := readFrame(conn, &out); err != nil {
		return out, transportError(op, errors.Join(err, ctx.Err()))
	}
	return out, out.refusal()
}

// dial connects to the agent, which succeeds or fails at once. When ctx ends, reads and
// writes on the connection fail.
func (c Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return bound{conn, stop}, nil
}

// bound is a connection whose reads and writes fail once a context ends.
type bound struct {
	net.Conn
	stop func() bool
}

// Close implements net.Conn.
func (b bound) Close() error {
	b.stop()
	return b.Conn.Close()
}

// Fallback is a Planner that asks First, and asks Then only when First could not be
// reached or hung: a refusal is an answer. A ping tells a planner that waits for the
// API server from one that hangs: a planner that answers the ping has all the time
// there is, and one that does not is soon given up. A planner that cannot be pinged is
// given up after two thirds of the time. For Status every planner has askTime. Once
// given up, First is not asked again: otherwise a verb would wait for its report as
// long as it did for its plan. Planning has no effect, so asking twice is safe; a
// report that was lost in transit is published at most once more. Fallback is not for
// concurrent use.
//
// When many processes ask at once, for example after a node reboot, the agent is about
// to start and each of them would run its program. With Queue, the path of a file that
// each can read, they plan through Then one after another, and those that wait ask
// First again.
type Fallback struct {
	First, Then Planner
	Queue       string // empty for none

	hung error // why First was given up, nil if it was not
}

// shareOf returns a context with two thirds of the time that ctx has left, but at most
// most.
func shareOf(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(end)*2/3)
	}
	return context.WithTimeout(ctx, most)
}

// pingTime is how long First may take for an answer before it is pinged, and for
// answering the ping. On a busy node either takes a small fraction of it.
const pingTime = 5 * time.Second

// pinger is a Planner that can be asked whether it answers at all.
type pinger interface{ Ping(context.Context) error }

// whileItAnswers returns a context that ends with ctx, or earlier when first does not
// answer a ping. If ctx is short, that happens after two thirds of its time.
func whileItAnswers(ctx context.Context, first pinger) (context.Context, context.CancelFunc) {
	pause := pingTime
	if end, ok := ctx.Deadline(); ok {
		pause = min(pause, time.Until(end)/3)
	}
	ctx, giveUp := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			ping, cancel := context.WithTimeout(ctx, pause)
			err := first.Ping(ping)
			cancel()
			if IsTransport(err) {
				giveUp()
				return
			}
		}
	}()
	return ctx, giveUp
}

// patient limits First where it may have to wait for the API server.
func (f *Fallback) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if first, can := f.First.(pinger); can {
		return whileItAnswers(ctx, first)
	}
	return shareOf(ctx, callTimeout)
}

// askTime is the time for a question that First answers from memory, at once or not at
// all. The kubelet considers a runtime dead after 30 s.
const askTime = 2 * time.Second

// soon limits First where it answers from memory.
func soon(ctx context.Context) (context.Context, context.CancelFunc) { return shareOf(ctx, askTime) }

// limit gives a question part of the time that is left.
type limit func(context.Context) (context.Context, context.CancelFunc)

// question asks one of the planners.
type question func(context.Context, Planner) error

// first asks First within the limit given. over is false when First could not be
// reached, as err says, and there is time to ask another planner.
func (f *Fallback) first(ctx context.Context, given limit, ask question) (over bool, err error) {
	if f.hung != nil {
		return false, f.hung
	}
	limited, end := given(ctx)
	err = ask(limited, f.First)
	givenUp := limited.Err() != nil
	end()
	if !IsTransport(err) || ctx.Err() != nil {
		return true, err
	}
	if givenUp {
		f.hung = err
	}
	return false, err
}

// inTurn asks First within the limit given, and Then if it must.
func (f *Fallback) inTurn(ctx context.Context, given limit, ask question) error {
	over, err := f.first(ctx, given, ask)
	if over {
		return err
	}
	return joinTransport(err, ask(ctx, f.Then))
}

// Plan implements [Planner].
func (f *Fallback) Plan(ctx context.Context, req Request) (p *Plan, err error) {
	ask := func(ctx context.Context, of Planner) (err error) {
		p, err = of.Plan(ctx, req)
		return err
	}
	over, err := f.first(ctx, f.patient, ask)
	if !over {
		end := queue(ctx, f.Queue, func() bool {
			over, err = f.first(ctx, f.patient, ask)
			return !over
		})
		defer end()
	}
	if !over {
		err = joinTransport(err, ask(ctx, f.Then))
	}
	return p, err
}

// Report implements [Planner].
func (f *Fallback) Report(ctx context.Context, r Report) error {
	return f.inTurn(ctx, f.patient, func(ctx context.Context, to Planner) error { return to.Report(ctx, r) })
}

// Status implements [Planner].
func (f *Fallback) Status(ctx context.Context, q StatusQuery) (config json.RawMessage, err error) {
	err = f.inTurn(ctx, soon, func(ctx context.Context, of Planner) (err error) {
		config, err = of.Status(ctx, q)
		return err
	})
	return config, err
}

// joinTransport keeps both causes when neither planner was reached.
func joinTransport(first, second error) error {
	if IsTransport(second) {
		return transportError("ask for a plan", fmt.Errorf("%w; fallback: %w", first, second))
	}
	return second
}
