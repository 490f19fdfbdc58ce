package vm

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/test/vm/guest"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// without returns a machine without a guest: the guest's end of the port runs commands
// on the host.
func without(t *testing.T) *Machine {
	t.Helper()
	here, there := net.Pipe()
	m := newMachine(t.TempDir())
	m.talk(here)
	go func() {
		m.dead = guest.NewServer(there).Serve()
		close(m.done)
		there.Close()
	}()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func sh(script string) Command {
	return Command{Command: wire.Command{Args: []string{"/bin/sh", "-c", script}}}
}

// TestRunGivesStreamsAndStatus proves that a command gets its environment, directory
// and input, and that its output, errors and status come back.
func TestRunGivesStreamsAndStatus(t *testing.T) {
	m := without(t)
	var out, errs bytes.Buffer
	c := sh(`echo "$KEY in $PWD"; echo careful >&2; cat; exit 7`)
	c.Env, c.Dir, c.Stdin, c.Stdout, c.Stderr = []string{"KEY=value"}, "/usr", strings.NewReader(strings.Repeat("x", 200_000)), &out, &errs
	status, err := m.Run(t.Context(), c)
	if err != nil || status != 7 {
		t.Errorf("status %d, %v", status, err)
	}
	if want := "value in /usr\n" + strings.Repeat("x", 200_000); out.String() != want {
		t.Errorf("%d bytes of output beginning with %.40q, want %d", out.Len(), out.String(), len(want))
	}
	if errs.String() != "careful\n" {
		t.Errorf("errors %q", errs.String())
	}
}

// TestRunTellsHowItEnded proves the status of commands that exit or are killed by
// signals, and the errors of programs that cannot start.
func TestRunTellsHowItEnded(t *testing.T) {
	m := without(t)
	for script, want := range map[string]int{"true": 0, "exit 3": 3, "kill -9 $$": 137, "kill -15 $$": 143} {
		if status, err := m.Run(t.Context(), sh(script)); err != nil || status != want {
			t.Errorf("%s: status %d, want %d: %v", script, status, want, err)
		}
	}
	if _, err := m.Run(t.Context(), Command{Command: wire.Command{Args: []string{"/no/such/program"}}}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error for a missing program: %v", err)
	}
	if _, err := m.Run(t.Context(), Command{}); err == nil {
		t.Error("running without a program gives no error")
	}
}

// TestCommandsDoNotWaitForEachOther proves that a command that does not read its input
// blocks no other, and that it ends with its context.
func TestCommandsDoNotWaitForEachOther(t *testing.T) {
	m := without(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended, begun := make(chan error), make(chan struct{})
	go func() {
		c := sh("echo begun; exec sleep 1000")
		c.Stdin, c.Stdout = strings.NewReader(strings.Repeat("x", 1<<20)), once{begun}
		_, err := m.Run(ctx, c)
		ended <- err
	}()
	<-begun
	if status, err := m.Run(t.Context(), sh("exit 5")); err != nil || status != 5 {
		t.Errorf("status %d, %v", status, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// once closes its channel at the first output.
type once struct{ c chan struct{} }

func (o once) Write(b []byte) (int, error) {
	close(o.c)
	return len(b), nil
}

// TestOutputOfProcessesLeftBehindIsNotWaitedFor proves that Run returns although a
// background process still holds the command's streams open.
func TestOutputOfProcessesLeftBehindIsNotWaitedFor(t *testing.T) {
	m := without(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if status, err := m.Run(ctx, sh("sleep 1000 & echo $! >&2; exit 4")); err != nil || status != 4 {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestTerminal proves that a command gets a terminal of the requested size.
func TestTerminal(t *testing.T) {
	m := without(t)
	var out bytes.Buffer
	c := sh("stty size; read line; echo got $line")
	c.Terminal, c.Stdin, c.Stdout = &wire.Size{Rows: 33, Columns: 99}, strings.NewReader("hello\n"), &out
	if status, err := m.Run(t.Context(), c); err != nil || status != 0 {
		t.Fatalf("status %d, %v", status, err)
	}
	for _, part := range []string{"33 99", "got hello"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("output %q lacks %q", out.String(), part)
		}
	}
}

// TestGoneGuest proves that running and later commands fail with [ErrGone] once the
// guest is gone.
func TestGoneGuest(t *testing.T) {
	m := without(t)
	ended := make(chan error)
	go func() {
		_, err := m.Run(t.Context(), sh("sleep 2"))
		ended <- err
	}()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, ErrGone) {
		t.Errorf("a running command ended with %v", err)
	}
	if _, err := m.Run(t.Context(), sh("true")); !errors.Is(err, ErrGone) {
		t.Errorf("a later command: %v", err)
	}
}
