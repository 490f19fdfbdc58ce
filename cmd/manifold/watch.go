package main

import (
	"os"
	"strconv"
	"syscall"
)

// watchSlack is by how much the runtime's watching thread may oversleep, in
// nanoseconds: a deadline of a delegate is kept to within as much.
const watchSlack = "10000000"

// letWatchSleep lets the Go runtime's watching thread oversleep. Every 20 µs it looks
// whether the processor of the scheduler waits in a system call, as it does while a
// delegate runs; then it takes it away and wakes a third thread, which finds nothing
// to do. That is a tenth of a call's processor time. The first thread, which does the
// work and starts the delegates, stays as it is, and so do they: but for what goes on,
// rarely, on a thread that the watching one started. Where the kernel does not allow
// it everything goes its usual way.
func letWatchSleep() {
	thread, ok := watchThread()
	if !ok {
		return
	}
	fd, err := syscall.Open(slackOf(thread), syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = syscall.Write(fd, []byte(watchSlack)) // it needs CAP_SYS_NICE
	_ = syscall.Close(fd)                        // the write was all
}

// watchThread returns the runtime's watching thread: it starts that before any other.
func watchThread() (thread string, ok bool) {
	dir, err := syscall.Open("/proc/self/task", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	var buf [1 << 10]byte // of the first threads' entries, which are in order
	n, err := syscall.ReadDirent(dir, buf[:])
	_ = syscall.Close(dir) // nothing was written through it
	if err != nil {
		return "", false
	}
	first := strconv.Itoa(os.Getpid())
	_, _, threads := syscall.ParseDirent(buf[:n], -1, nil)
	for _, thread := range threads {
		if thread != first {
			return thread, true
		}
	}
	return "", false
}

// slackOf is the file of a thread's timer slack.
func slackOf(thread string) string { return "/proc/" + thread + "/timerslack_ns" }
