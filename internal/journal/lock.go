package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// barrierFile is the file in the journal directory whose flock is the barrier between
// new sandboxes and a garbage collection that is passed on to delegates. Each ADD
// holds it shared while it writes the first record of its journal. The collection
// holds it exclusively from listing the journals to the last delegate's GC. A sandbox
// is therefore either in that list or begins after the collection.
const barrierFile = "gc.lock"

const lockSuffix = ".lock"

// begin takes the shared side of the barrier. It waits until ctx ends.
func (d Dir) begin(ctx context.Context) (*Lock, error) {
	return d.barrier(ctx, "wait for garbage collection", unix.LOCK_SH)
}

// Barrier keeps new journals from being begun until it is unlocked. It waits, until
// ctx ends, for those that are just being begun.
func (d Dir) Barrier(ctx context.Context) (*Lock, error) {
	return d.barrier(ctx, "begin garbage collection", unix.LOCK_EX)
}

func (d Dir) barrier(ctx context.Context, op string, how int) (*Lock, error) {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return nil, ioError(op, err)
	}
	for {
		l, err := tryLock(filepath.Join(d.Path, barrierFile), how)
		if err != nil {
			return nil, ioError(op, err)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, cnierr.New(op, cnierr.Busy, "%w", context.Cause(ctx)).WithFix("the runtime will try again")
		}
	}
}

// Lock is the exclusive right to work on one sandbox.
//
// It is a flock on an open file whose descriptor every delegate inherits. A flock
// belongs to the open file, not to a process: while an orphaned delegate of a killed
// shim runs, the lock is still held, and whoever asks for it knows that the sandbox
// is still being changed. A shim that exits normally unlocks explicitly. That
// releases the lock for all who inherited it, so a daemon that a delegate leaves
// running on purpose holds nothing.
type Lock struct {
	file *os.File
	path string
}

// File returns the open lock file, to be inherited by delegates.
func (l *Lock) File() *os.File { return l.file }

// lockPoll is how often a waiter retries, because flock cannot wait with a deadline.
const lockPoll = 5 * time.Millisecond

// Lock takes the lock of k and waits for it until ctx ends. If by then only orphaned
// delegates hold the lock, Lock kills them and takes it. Otherwise the error is
// [cnierr.Busy].
func (d Dir) Lock(ctx context.Context, k Key) (*Lock, error) {
	const op = "lock sandbox"
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return nil, ioError(op, err)
	}
	path := filepath.Join(d.Path, k.String()+lockSuffix)
	for {
		l, err := tryLock(path, unix.LOCK_EX)
		if err != nil {
			return nil, ioError(op, err)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-time.After(lockPoll):
			continue
		case <-ctx.Done():
		}
		holders, ended := endOrphans(path)
		if !ended {
			return nil, cnierr.New(op, cnierr.Busy, "%s is held by processes %v: %w", k, holders, context.Cause(ctx)).
				WithFix("another operation on this sandbox still runs; the runtime will try again")
		}
		return lockEnded(op, path, k)
	}
}

// TryLock takes the lock of k when nobody holds it. It returns nil without an error
// when somebody does.
func (d Dir) TryLock(k Key) (*Lock, error) {
	l, err := tryLock(filepath.Join(d.Path, k.String()+lockSuffix), unix.LOCK_EX)
	if err != nil {
		return nil, ioError("lock sandbox", err)
	}
	return l, nil
}

// underWay reports whether somebody works on a sandbox that has a lock file. It
// removes the file when nobody does and the sandbox has no journal.
func (d Dir) underWay(k Key) (bool, error) {
	l, err := d.TryLock(k)
	if err != nil || l == nil {
		return true, err
	}
	_, err = d.Stat(k)
	return false, l.Unlock(errors.Is(err, os.ErrNotExist))
}

// lockEnded takes the lock after its holders were killed. The kernel releases it as
// soon as they have exited.
func lockEnded(op, path string, k Key) (*Lock, error) {
	const most = 2 * time.Second
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(lockPoll) {
		l, err := tryLock(path, unix.LOCK_EX)
		if err != nil {
			return nil, ioError(op, err)
		}
		if l != nil {
			return l, nil
		}
	}
	return nil, cnierr.New(op, cnierr.Busy, "%s: its orphaned delegate does not exit", k)
}

// tryLock opens and locks path, shared or exclusive as how says. It returns nil
// without an error when the lock is held by another.
func tryLock(path string, how int) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The former owner may have removed the file between open and lock. Then this
	// lock is on a file that nobody else will ever find.
	same, err := sameFile(f, path)
	if err != nil || !same {
		return nil, errors.Join(err, f.Close())
	}
	return &Lock{file: f, path: path}, nil
}

func sameFile(f *os.File, path string) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(opened, named), nil
}

// Unlock releases the lock, also for delegates that inherited it. With remove it
// deletes the lock file too, for a sandbox of which nothing is left.
func (l *Lock) Unlock(remove bool) error {
	var err error
	if remove {
		// Remove the file while it is still locked, so that a waiter sees it is gone.
		// First remove a journal that was never begun.
		unborn := strings.TrimSuffix(l.path, lockSuffix) + suffix + newSuffix
		for _, path := range []string{unborn, l.path} {
			// One system call; os.Remove makes two for a missing file.
			// No file can have a name that is too long.
			if e := unix.Unlink(path); !errors.Is(e, os.ErrNotExist) && !errors.Is(e, unix.ENAMETOOLONG) {
				err = errors.Join(err, e)
			}
		}
	}
	if err = errors.Join(err, unix.Flock(int(l.file.Fd()), unix.LOCK_UN), l.file.Close()); err != nil {
		return ioError("unlock sandbox", err)
	}
	return nil
}

// marks is the format of a lock file's content: boot ID and time since boot in
// nanoseconds. Its length is fixed, so that one write replaces an older mark.
const marks = "%s %020d\n"

// Uptime returns the time since boot on the clock that timeouts use. Setting the wall
// clock does not change it, and it stops while the machine is suspended.
func Uptime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, ioError("read uptime", err)
	}
	return time.Duration(t.Nano()), nil
}

// MarkAdded records in the lock file that the sandbox's ADD has succeeded now. The
// time of the journal's last step would be too early: after it, ADD still waits for
// carriers and for its report to be published.
func (l *Lock) MarkAdded() error {
	now, err := Uptime()
	if err != nil {
		return err
	}
	if _, err := l.file.WriteAt(fmt.Appendf(nil, marks, bootID(), now), 0); err != nil {
		return ioError("mark sandbox as added", err)
	}
	return nil
}

// Added returns the [Uptime] at which the sandbox's ADD succeeded, and whether it is
// known: marked in this boot, and not in the future.
func (l *Lock) Added() (time.Duration, bool) {
	text := make([]byte, 128)
	n, _ := l.file.ReadAt(text, 0) // a mark is shorter, so reading it ends with io.EOF
	boot, at, _ := strings.Cut(strings.TrimSpace(string(text[:n])), " ")
	v, err := strconv.ParseInt(at, 10, 64)
	if err != nil || boot != bootID() {
		return 0, false
	}
	now, err := Uptime()
	return time.Duration(v), err == nil && time.Duration(v) <= now
}

// EndDescendants kills every other process that inherited the lock: what a killed
// delegate leaves running, for example an IPAM plugin.
func (l *Lock) EndDescendants() {
	for _, pid := range holders(l.path) {
		if pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have exited already
		}
	}
}

// agentProgram is the agent's program. The agent holds a sandbox's lock while it
// repairs the sandbox's VF.
const agentProgram = "manifold-agent"

// endOrphans kills the holders of path when none of them is a Manifold shim or the
// agent. It returns the holders and whether they were all orphans.
func endOrphans(path string) (pids []int, ended bool) {
	self := program("self")
	pids = holders(path)
	for _, pid := range pids {
		if is := program(strconv.Itoa(pid)); is == self || is == agentProgram {
			return pids, false
		}
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // it may have exited already
	}
	return pids, true
}

// program returns the file name of a process's executable. When an upgrade replaces
// the file under a running shim, the link ends in " (deleted)".
func program(pid string) string {
	exe, err := os.Readlink("/proc/" + pid + "/exe")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(exe), " (deleted)")
}

// holders returns the IDs of the processes that hold the flock on path, by having it
// taken or inherited.
func holders(path string) []int {
	want, err := os.Stat(path)
	if err != nil {
		return nil
	}
	var pids []int
	procs, _ := os.ReadDir("/proc") // without /proc no holder can be found
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the process may have exited
		for _, fd := range fds {
			if fi, err := os.Stat(fd); err == nil && os.SameFile(fi, want) && isLocked(pid, filepath.Base(fd)) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// isLocked reports whether a process's descriptor is of an open file that has a flock.
// Other processes open a lock file too, for the moment that it takes to find out
// whether the lock is free, and must not be killed for that.
func isLocked(pid int, fd string) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false // the process has exited or closed the file
	}
	for line := range strings.Lines(string(info)) {
		if strings.HasPrefix(line, "lock:") && strings.Contains(line, "FLOCK") {
			return true
		}
	}
	return false
}
