package main

import (
	"os"
	"strconv"
	"syscall"
)

// watchSlack is how much the runtime's monitor thread may oversleep, in nanoseconds. The
// deadlines of delegates are that much less precise.
const watchSlack = "10000000"

// letWatchSleep lets the Go runtime's monitor thread (sysmon) oversleep. That thread
// checks every 20 µs whether the scheduler's processor is blocked in a system call, as it
// is while a delegate runs. It then takes the processor away and wakes a third thread,
// which finds nothing to do. This costs a tenth of a call's processor time. The first
// thread, which does the work and starts the delegates, keeps its timer slack, and so do
// the delegates, except for work that runs, rarely, on a thread started by the monitor
// thread. If the kernel does not allow the change, nothing changes.
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
	_ = syscall.Close(fd)                        // nothing is left to be written
}

// watchThread returns the ID of the monitor thread: the runtime starts it before any
// other thread.
func watchThread() (thread string, ok bool) {
	dir, err := syscall.Open("/proc/self/task", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	var buf [1 << 10]byte // enough for the entries of the first threads, which are in order
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

// slackOf returns the path of the file with a thread's timer slack.
func slackOf(thread string) string { return "/proc/" + thread + "/timerslack_ns" }
