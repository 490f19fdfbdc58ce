package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// callTimeout is the time limit of one call at the agent. It is longer than any runtime
// waits for a sandbox, so that the caller's own limit decides.
const callTimeout = 4 * time.Minute

// Listen creates the agent's socket at path with mode 0600. It replaces a socket that a
// killed agent left. It creates dir with mode 0700 if needed.
func Listen(dir, path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, cnierr.New("create socket directory", cnierr.IO, "%w", err)
	}
	// Rename the socket into place from a temporary name: a client sees the old socket
	// or the new one, never a name that nobody listens on.
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, cnierr.New("listen on "+path, cnierr.IO, "%w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, cnierr.New("listen on "+path, cnierr.IO, "%w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, cnierr.New("listen on "+path, cnierr.IO, "%w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// acceptPause is the pause after a failed accept: exhausted file descriptors or memory
// become available when calls end.
const acceptPause = 50 * time.Millisecond

// Serve answers calls on l with p until ctx ends. Then it closes l and waits for the
// calls in progress. It refuses callers other than root and the agent's own user.
func Serve(ctx context.Context, l *net.UnixListener, p Planner) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return cnierr.New("accept", cnierr.IO, "%w", err)
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		calls.Go(func() { serveConn(ctx, conn, p) })
	}
}

func serveConn(ctx context.Context, conn *net.UnixConn, p Planner) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callTimeout))
	var in call
	out := answer{}
	if err := checkPeer(conn); err != nil {
		out.Error = wrap("check caller", err)
	} else if err := readFrame(conn, &in); err != nil {
		out.Error = cnierr.New("read call", cnierr.Decode, "%w", err)
	} else {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		out = answerTo(ctx, conn, in, p)
		cancel()
	}
	// The caller may have been killed in the meantime. Then there is nobody to tell.
	if err := writeFrame(conn, out); errors.Is(err, errTooLarge) {
		// Nothing was written yet, and the caller would take silence for a dead agent.
		_ = writeFrame(conn, answer{Error: cnierr.New(in.Op, cnierr.Other, "answer: %w", err)})
	}
}

// watchAfter is how long a question may take before its caller is watched. Usually it
// is answered from memory sooner, in less time than it takes to start and stop the
// watching goroutine.
const watchAfter = 20 * time.Millisecond

// answerTo does what a caller asks. A question ends with its caller: the plan of an
// abandoned call serves nobody, and its refusal may concern a pod that is running by
// then. A report or operation is accepted even when its caller is gone, for example
// killed.
func answerTo(ctx context.Context, conn net.Conn, in call, p Planner) answer {
	if in.Op == opReport || in.Op == opObserve {
		return dispatch(ctx, in, p)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	watch := time.AfterFunc(watchAfter, func() {
		defer close(watched)
		// Nothing follows a call, so the read returns when the connection ends.
		if n, _ := conn.Read(make([]byte, 1)); n == 0 {
			cancel()
		}
	})
	out := dispatch(ctx, in, p)
	if watch.Stop() {
		return out
	}
	conn.SetReadDeadline(time.Unix(1, 0))
	<-watched
	return out
}

// checkPeer refuses callers that are neither root nor the agent's own user.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not call the agent", cred.Uid)
	}
	return nil
}

// ServeStream reads calls from r and answers them on w until r ends. It is the agent
// program's one-shot mode, the other end of [Command]. It answers a call that cannot be
// read with an error and then stops.
func ServeStream(ctx context.Context, r io.Reader, w io.Writer, p Planner) error {
	limited := &io.LimitedReader{R: r}
	calls, answers := json.NewDecoder(limited), json.NewEncoder(w)
	for {
		var in call
		limited.N = MaxMessage
		err := calls.Decode(&in)
		if errors.Is(err, io.EOF) && limited.N > 0 {
			return nil
		}
		out := answer{Error: cnierr.New("read call", cnierr.Decode, "a call has at most %d bytes of JSON: %w", MaxMessage, err)}
		if err == nil {
			out = dispatch(ctx, in, p)
		}
		if err := answers.Encode(out); err != nil {
			return cnierr.New("write answer", cnierr.IO, "%w", err)
		}
		if err != nil {
			return nil
		}
	}
}

// dispatch makes the call in on p.
func dispatch(ctx context.Context, in call, p Planner) answer {
	var out answer
	var err error
	switch {
	case in.Op == opPlan && in.Request != nil:
		out.Plan, err = p.Plan(ctx, *in.Request)
	case in.Op == opReport && in.Report != nil && in.Report.Plan != nil:
		err = p.Report(ctx, *in.Report)
	case in.Op == opStatus:
		q := StatusQuery{}
		if in.Status != nil {
			q = *in.Status
		}
		out.Config, err = p.Status(ctx, q)
	case in.Op == opInspect && in.Question != nil:
		out.Document, err = inspect(ctx, p, *in.Question)
	case in.Op == opPing:
	case in.Op == opObserve && in.Operation != nil:
		if o, ok := p.(Observer); ok {
			o.Observe(ctx, *in.Operation)
		}
	default:
		err = cnierr.New("read call", cnierr.Decode, "unknown or incomplete operation %q", in.Op)
	}
	if err != nil {
		return answer{Error: wrap(in.Op, err)}
	}
	return out
}

// inspect asks a planner that is also an Inspector.
func inspect(ctx context.Context, p Planner, q Question) (json.RawMessage, error) {
	i, ok := p.(Inspector)
	if !ok {
		return nil, cnierr.New(opInspect, cnierr.Decode, "this planner answers no questions")
	}
	return i.Inspect(ctx, q)
}

// wrap converts err for the wire without losing its kind.
func wrap(op string, err error) *cnierr.Error {
	var e *cnierr.Error
	if errors.As(err, &e) {
		return e
	}
	return cnierr.New(op, cnierr.Other, "%w", err)
}
