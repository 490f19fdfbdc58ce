package plan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Command is a Planner that runs the agent's program, for a node without a running
// agent. The program starts with the first call and answers all calls, since starting
// costs more than answering. Each call is a JSON document on its stdin, each answer one
// on its stdout. Command is not for concurrent use.
type Command struct {
	Path string   // the agent's program
	Args []string // its arguments, for example "plan", "--config", FILE

	running *conversation
}

// endTime is how long the program may take to exit after the last answer, for example
// to write an Event.
const endTime = 15 * time.Second

// Plan implements [Planner].
func (c *Command) Plan(ctx context.Context, req Request) (*Plan, error) {
	out, err := c.do(ctx, call{Op: opPlan, Request: &req})
	if err != nil {
		return nil, err
	}
	return out.plan()
}

// Report implements [Planner].
func (c *Command) Report(ctx context.Context, r Report) error {
	_, err := c.do(ctx, call{Op: opReport, Report: &r})
	return err
}

// Status implements [Planner].
func (c *Command) Status(ctx context.Context, q StatusQuery) (json.RawMessage, error) {
	out, err := c.do(ctx, call{Op: opStatus, Status: &q})
	return out.Config, err
}

// Close stops the program if it is running, and returns an error unless it succeeded.
func (c *Command) Close() error {
	if c.running == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	err := c.running.end(ctx)
	c.running = nil
	if err != nil {
		return transportError("end "+c.Path, err)
	}
	return nil
}

// do makes one call. It starts a program again that has exited since the last call.
func (c *Command) do(ctx context.Context, in call) (out answer, err error) {
	again := c.running != nil
	for {
		if c.running == nil {
			if c.running, err = converse(c.Path, c.Args); err != nil {
				return out, transportError("run "+c.Path, err)
			}
		}
		out, err = c.running.ask(ctx, in)
		if err == nil {
			return out, out.refusal()
		}
		soon, cancel := context.WithTimeout(ctx, time.Second) // to say why it fails
		err = errors.Join(err, c.running.end(soon))
		cancel()
		c.running = nil
		if !again || ctx.Err() != nil {
			return out, transportError("run "+c.Path, err)
		}
		again = false
	}
}

// conversation is a running program.
type conversation struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.LimitedReader
	answer *json.Decoder
	stderr limited
}

// converse starts the program at path.
func converse(path string, args []string) (*conversation, error) {
	c := &conversation{cmd: exec.Command(path, args...)}
	c.cmd.Stderr, c.cmd.WaitDelay = &c.stderr, time.Second
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.out.R, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	c.answer = json.NewDecoder(&c.out)
	return c, c.cmd.Start()
}

// ask makes a call and reads its answer. When ctx ends, it kills the program.
func (c *conversation) ask(ctx context.Context, in call) (out answer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() }) // it may have exited already
	defer stop()
	c.out.N = MaxMessage
	if err = json.NewEncoder(c.in).Encode(in); err == nil {
		err = c.answer.Decode(&out)
	}
	if err != nil {
		return out, errors.Join(fmt.Errorf("answer: %w", err), ctx.Err())
	}
	return out, nil
}

// end closes the program's stdin, which makes it exit, and waits for it. When ctx ends,
// it kills the program.
func (c *conversation) end(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() }) // it may have exited already
	defer stop()
	err := errors.Join(c.in.Close(), c.cmd.Wait())
	if err != nil {
		return fmt.Errorf("%w: %s", err, tail(c.stderr.Bytes()))
	}
	return nil
}

// limited keeps what is written to it, up to MaxMessage bytes.
type limited struct{ bytes.Buffer }

// Write implements [io.Writer].
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > MaxMessage {
		return 0, fmt.Errorf("output exceeds %d bytes", MaxMessage)
	}
	return l.Buffer.Write(p)
}

// tail returns the end of a program's error output, short enough for a message.
func tail(b []byte) string {
	const most = 512
	b = bytes.TrimSpace(b)
	if len(b) > most {
		b = append([]byte("…"), b[len(b)-most:]...)
	}
	return string(b)
}
