package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a delegate's process. The goroutine that waits for it also reads its
// streams. os/exec takes a goroutine, and so a thread, per stream; for a pod with three
// networks that costs more than all its other system calls.
type child struct {
	pid    int
	pidfd  int // -1 on kernels without pidfds (before 5.3)
	ends   int // what kill signals: the pid, or the negative process group ID
	out    int // read end of its stdout, non-blocking; -1 after EOF
	err    int // likewise for its stderr
	mu     sync.Mutex
	reaped bool // pid may belong to another process
}

// startChild starts the program at path. The child inherits inherit as descriptor 3, by
// which its own children are found when it is killed. When inherit is nil the child
// leads a process group that is killed as a whole: a plugin that hangs in STATUS would
// otherwise leave more processes every few seconds.
func startChild(path string, stdin []byte, environ []string, inherit *os.File) (_ *child, err error) {
	var ours, theirs []int
	defer func() {
		closeAll(theirs)
		if err != nil {
			closeAll(ours)
		}
	}()
	in, err := memory(stdin)
	if err != nil {
		return nil, fmt.Errorf("stdin of %s: %w", path, err)
	}
	theirs = append(theirs, in)
	for range 2 {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("output of %s: %w", path, err)
		}
		ours, theirs = append(ours, p[0]), append(theirs, p[1])
		if err := unix.SetNonblock(p[0], true); err != nil {
			return nil, fmt.Errorf("output of %s: %w", path, err)
		}
	}
	c := &child{pidfd: -1, out: ours[0], err: ours[1]}
	attr := &syscall.ProcAttr{Env: environ, Sys: &syscall.SysProcAttr{PidFD: &c.pidfd}}
	for _, fd := range theirs {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if attr.Sys.Setpgid = inherit == nil; inherit != nil {
		attr.Files = append(attr.Files, inherit.Fd())
	}
	if c.pid, err = syscall.ForkExec(path, []string{path}, attr); err != nil {
		return nil, &os.PathError{Op: "fork/exec", Path: path, Err: err}
	}
	if c.ends = c.pid; attr.Sys.Setpgid {
		c.ends = -c.pid
	}
	return c, nil
}

// memory returns a descriptor to read content from. Unlike a pipe it holds any amount
// without a writer.
func memory(content []byte) (int, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for off := 0; off < len(content); {
		n, err := unix.Pwrite(fd, content[off:], int64(off))
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		off += n
	}
	return fd, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nothing was written through it
	}
}

// wait reads the child's output until the child exits, and kills it when ctx ends. It
// returns an error unless the child succeeded. It does not wait for the child's own
// children, which may hold the streams open.
func (c *child) wait(ctx context.Context, stdout, stderr *bounded) error {
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	defer func() { closeAll(c.open()) }()
	for ended := false; !ended; {
		var err error
		if ended, err = c.poll(); err != nil {
			c.kill()
			return errors.Join(err, c.reap())
		}
		// After the exit, all output is there to read.
		if err := errors.Join(drain(&c.out, stdout), drain(&c.err, stderr)); err != nil {
			c.kill()
			return errors.Join(err, c.reap())
		}
	}
	return c.reap()
}

// open returns the descriptors that are still open.
func (c *child) open() []int {
	var fds []int
	for _, fd := range []int{c.out, c.err, c.pidfd} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// noPidfdPause is how long to wait for output between two checks whether the child has
// exited, on kernels without pidfds.
const noPidfdPause = 20 * time.Millisecond

// poll waits until there is output or the child has exited, and reports whether it has
// exited.
func (c *child) poll() (ended bool, err error) {
	if c.out < 0 && c.err < 0 {
		return true, nil // or is about to: there is nothing else to wait for
	}
	fds := []unix.PollFd{{Fd: int32(c.out), Events: unix.POLLIN}, {Fd: int32(c.err), Events: unix.POLLIN}, {Fd: int32(c.pidfd), Events: unix.POLLIN}}
	pause := -1
	if c.pidfd < 0 {
		pause = int(noPidfdPause.Milliseconds())
	}
	_, err = unix.Poll(fds, pause)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("poll: %w", err)
	}
	if c.pidfd >= 0 {
		return err == nil && fds[2].Revents != 0, nil
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait: %w", err)
	}
	return info.Signo != 0, nil
}

// drain moves all available output from fd to b, and closes fd at EOF.
func drain(fd *int, b *bounded) error {
	buf := make([]byte, 8<<10)
	for *fd >= 0 {
		n, err := unix.Read(*fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		case n == 0:
			closeAll([]int{*fd})
			*fd = -1
		default:
			_, _ = b.Write(buf[:n]) // never fails
		}
	}
	return nil
}

// kill kills the child unless it was reaped.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = unix.Kill(c.ends, unix.SIGKILL) // it may have exited already
	}
}

// reap waits for the child to exit and returns an error unless its exit status is 0.
func (c *child) reap() error {
	var info unix.Siginfo
	for {
		// Wait without reaping, so that kill cannot hit a process that reuses the pid.
		err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reaped = true
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &status, 0, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
	}
	switch {
	case status.Signaled():
		return fmt.Errorf("killed by signal %d (%s)", status.Signal(), status.Signal())
	case status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return nil
}
