package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Client is a Planner that asks the agent over its unix socket, one connection
// per call.
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

// Ping returns nil when the agent accepts a call and answers it, whatever its
// sources say.
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

// dial connects to the agent, which succeeds or fails at once; what is read and
// written there ends with ctx.
func (c Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return bound{conn, stop}, nil
}

// bound is a connection that ends with a context.
type bound struct {
	net.Conn
	stop func() bool
}

// Close implements net.Conn.
func (b bound) Close() error {
	b.stop()
	return b.Conn.Close()
}

// Fallback is a Planner that asks First, and Then only when First could not be
// reached, or hung for two thirds of the time that there is, in Status for askTime
// at most: a refusal is an answer. One that can be pinged and does not even answer
// that is given up sooner. Planning has no effect, so asking twice is safe; a report
// that was lost in transit is published at most once more.
type Fallback struct {
	First, Then Planner
}

// shareOf returns a context with two thirds of the time that ctx has left.
func shareOf(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)*2/3)
}

// pingTime is how long First may take for a plan before it is asked whether it
// answers at all, and for that: many times what either takes on a node that is busy.
const pingTime = 5 * time.Second

// giveUpHung calls giveUp once First does not answer a ping: it hangs, where one that
// waits for the API server answers. It ends with ctx.
func (f Fallback) giveUpHung(ctx context.Context, giveUp context.CancelFunc) {
	first, can := f.First.(interface{ Ping(context.Context) error })
	for can {
		select {
		case <-time.After(pingTime):
		case <-ctx.Done():
			return
		}
		ping, cancel := context.WithTimeout(ctx, pingTime)
		err := first.Ping(ping)
		cancel()
		if IsTransport(err) {
			giveUp()
			return
		}
	}
}

// Plan implements [Planner].
func (f Fallback) Plan(ctx context.Context, req Request) (*Plan, error) {
	first, cancel := shareOf(ctx)
	defer cancel()
	go f.giveUpHung(first, cancel)
	p, err := f.First.Plan(first, req)
	if !IsTransport(err) || ctx.Err() != nil {
		return p, err
	}
	p, err2 := f.Then.Plan(ctx, req)
	return p, joinTransport(err, err2)
}

// Report implements [Planner].
func (f Fallback) Report(ctx context.Context, r Report) error {
	first, cancel := shareOf(ctx)
	defer cancel()
	err := f.First.Report(first, r)
	if !IsTransport(err) || ctx.Err() != nil {
		return err
	}
	return joinTransport(err, f.Then.Report(ctx, r))
}

// askTime is what First has for a question that it answers from its memory, at
// once or not at all: the kubelet takes a runtime for dead after 30 s.
const askTime = 2 * time.Second

// Status implements [Planner].
func (f Fallback) Status(ctx context.Context, q StatusQuery) (json.RawMessage, error) {
	share, cancel := shareOf(ctx)
	defer cancel()
	first, cancelFirst := context.WithTimeout(share, askTime)
	defer cancelFirst()
	config, err := f.First.Status(first, q)
	if !IsTransport(err) || ctx.Err() != nil {
		return config, err
	}
	config, err2 := f.Then.Status(ctx, q)
	return config, joinTransport(err, err2)
}

// joinTransport keeps both causes when neither planner was reached.
func joinTransport(first, second error) error {
	if IsTransport(second) {
		return transportError("ask for a plan", fmt.Errorf("%w; fallback: %w", first, second))
	}
	return second
}
