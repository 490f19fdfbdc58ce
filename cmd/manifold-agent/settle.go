package main

import (
	"bufio"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how long after its start an agent has its sources and serves.
const settleTime = 30 * time.Second

// settle gives back, once, what only starting needed: garbage, and the pages of the
// program. Those are the larger part: the kernel maps sixteen of them where one is
// used, and starting uses all packages. What serving uses is mapped again, from the
// kernel's memory of the file, and the rest is the node's where memory is short.
func settle(ctx context.Context) {
	select {
	case <-time.After(settleTime):
		debug.FreeOSMemory()
		unmapProgram()
	case <-ctx.Done():
	}
}

// unmapProgram takes the program's pages out of this process until they are used.
// Nothing is lost, since only what cannot be written is taken; where it fails, the
// pages stay.
func unmapProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if from, to, ok := programPages(lines.Text(), exe); ok {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED) // then they stay
		}
	}
}

// programPages returns the addresses that a line of a process's maps speaks of, and
// whether that are pages of the file exe which cannot be written.
func programPages(line, exe string) (from, to uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) != 6 || fields[5] != exe || !strings.HasPrefix(fields[1], "r-") {
		return 0, 0, false
	}
	begin, end, _ := strings.Cut(fields[0], "-")
	a, err1 := strconv.ParseUint(begin, 16, 64)
	b, err2 := strconv.ParseUint(end, 16, 64)
	return uintptr(a), uintptr(b), err1 == nil && err2 == nil && a < b
}
