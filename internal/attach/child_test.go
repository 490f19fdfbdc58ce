package attach

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script writes a shell script and returns its path.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "delegate")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// runChild runs a program to its end. noPidfd simulates a kernel without pidfds.
func runChild(t *testing.T, ctx context.Context, path, stdin string, inherit *os.File, noPidfd bool) (stdout, stderr string, err error) {
	t.Helper()
	c, err := startChild(path, []byte(stdin), []string{"PATH=" + os.Getenv("PATH")}, inherit)
	if err != nil {
		return "", "", err
	}
	if noPidfd && c.pidfd >= 0 {
		closeAll([]int{c.pidfd})
		c.pidfd = -1
	}
	var o, e bounded
	err = c.wait(ctx, &o, &e)
	return o.String(), e.String(), err
}

func TestChild(t *testing.T) {
	long := strings.Repeat("x", 300_000) // more than a pipe holds
	for name, c := range map[string]struct{ body, stdin, stdout, stderr, err string }{
		"reads and writes":        {"cat; echo said >&2", "hello", "hello", "said\n", ""},
		"reopens its output":      {"echo one >/dev/stdout; echo two >/dev/stdout", "", "one\ntwo\n", "", ""},
		"large both ways":         {"cat /dev/stdin", long, long, "", ""},
		"exit status":             {"echo no; exit 3", "", "no\n", "", "exit status 3"},
		"signal":                  {"kill -9 $$", "", "", "", "killed by signal 9"},
		"closes its output early": {"exec >&- 2>&-; exit 4", "", "", "", "exit status 4"},
		"leaves a daemon":         {"sleep 1000 & echo $!", "", "", "", ""},
	} {
		for _, noPidfd := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				stdout, stderr, err := runChild(t, t.Context(), script(t, c.body), c.stdin, nil, noPidfd)
				if name == "leaves a daemon" {
					endDaemon(t, &stdout)
				}
				text := ""
				if err != nil {
					text = err.Error()
				}
				if stdout != c.stdout || stderr != c.stderr || !strings.HasPrefix(text, c.err) || (c.err == "") != (err == nil) {
					t.Errorf("stdout %.60q stderr %q error %v", stdout, stderr, err)
				}
			})
		}
	}
}

// endDaemon kills the process whose ID is in stdout, and empties stdout.
func endDaemon(t *testing.T, stdout *string) {
	t.Helper()
	pid := 0
	for _, digit := range strings.TrimSpace(*stdout) {
		pid = pid*10 + int(digit-'0')
	}
	if pid < 2 {
		t.Fatalf("no process number in %q", *stdout)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	*stdout = ""
}

func TestChildIsKilledAtItsDeadline(t *testing.T) {
	for _, noPidfd := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		_, _, err := runChild(t, ctx, script(t, "exec sleep 1000"), "", nil, noPidfd)
		if err == nil || !strings.Contains(err.Error(), "killed by signal 9") {
			t.Errorf("error %v", err)
		}
	}
}

// When no lock tells who its children are, a child is killed as a process group.
func TestChildIsKilledWithItsOwnChildren(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, _, err := runChild(t, ctx, script(t, "sleep 1000 > "+pipe+" & wait"), "", nil, false)
		ended <- err
	}()
	alive, err := os.Open(pipe) // opens once the child's own child has it open
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed by signal 9") {
		t.Errorf("error %v", err)
	}
	if _, err := io.ReadAll(alive); err != nil { // EOF when the last process that has it open is gone
		t.Error(err)
	}
}

func TestChildInheritsOneFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := script(t, "echo held >&3")
	_, _, err = runChild(t, t.Context(), path, "", f, false)
	if held, e := os.ReadFile(f.Name()); err != nil || e != nil || string(held) != "held\n" {
		t.Errorf("%q: %v, %v", held, err, e)
	}
	if _, _, err := runChild(t, t.Context(), path, "", nil, false); err == nil {
		t.Error("it has a descriptor 3 that nobody gave it")
	}
}

func TestChildThatCannotStart(t *testing.T) {
	_, _, err := runChild(t, t.Context(), "/nowhere/delegate", "", nil, false)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestChildLeavesNoDescriptors(t *testing.T) {
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	path, before := script(t, "echo x"), count()
	for range 20 {
		if _, _, err := runChild(t, t.Context(), path, "{}", nil, false); err != nil {
			t.Fatal(err)
		}
		_, _, _ = runChild(t, t.Context(), "/nowhere/delegate", "{}", nil, false)
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}
