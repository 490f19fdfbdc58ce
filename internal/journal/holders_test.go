package journal

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// reader starts a process that has the lock file open without holding the lock, as
// another program has for a moment each time that it looks whether the lock is free.
func reader(t *testing.T, l *Lock) *exec.Cmd {
	t.Helper()
	f, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := exec.Command("sleep", "600")
	c.ExtraFiles = []*os.File{f}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// running reports whether a child has neither exited nor been killed.
func running(t *testing.T, c *exec.Cmd) bool {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return info.Signo == 0
}

// Only processes that inherited the lock are killed with a delegate, not those that
// wait for it.
func TestOnlyHeirsOfTheLockAreEnded(t *testing.T) {
	_, l := locked(t)
	waiting, child := reader(t, l), heir(t, l)
	l.EndDescendants()
	if err := child.Wait(); err == nil {
		t.Error("the heir exited by itself")
	}
	time.Sleep(100 * time.Millisecond) // a kill would have arrived
	if !running(t, waiting) {
		t.Error("a process that only looked at the lock was killed")
	}
	if err := l.Unlock(true); err != nil {
		t.Error(err)
	}
}

// The agent holds a sandbox's lock while it repairs the sandbox's VF: whoever waits for
// it gives up, and does not kill the agent.
func TestTheAgentIsNoOrphan(t *testing.T) {
	d, l := locked(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "manifold-agent")
	copyProgram(t, sleep, program)
	agent := exec.Command(program, "600")
	agent.ExtraFiles = []*os.File{l.File()}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	}()
	if err := l.File().Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Lock(ctx, key); !cnierr.Is(err, cnierr.Busy) {
		t.Errorf("waiting for the agent: %v", err)
	}
	if !running(t, agent) {
		t.Error("the agent was killed")
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
