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

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/plan"
)

// settleTime is how long after its start an agent has its sources, and what is given
// back at most so often while it is called.
const settleTime = 30 * time.Second

// counted is an agent that says when it is called.
type counted struct {
	*agent.Agent
	called chan struct{} // has room for one
}

// newCounted returns a as one that has just been called, as it is when it starts.
func newCounted(a *agent.Agent) counted {
	c := counted{a, make(chan struct{}, 1)}
	c.say()
	return c
}

func (c counted) say() {
	select {
	case c.called <- struct{}{}:
	default: // that is known already
	}
}

// Plan implements plan.Planner.
func (c counted) Plan(ctx context.Context, req plan.Request) (*plan.Plan, error) {
	c.say()
	return c.Agent.Plan(ctx, req)
}

// Observe implements plan.Observer.
func (c counted) Observe(ctx context.Context, op plan.Operation) {
	c.say()
	c.Agent.Observe(ctx, op)
}

// settle gives back, until ctx ends, what calls needed for a moment: garbage, and
// pages of the program. Those are the larger part: the kernel maps sixteen of them
// where one is used, and of starting alone most of them remain. What is used is mapped
// again, from the kernel's memory of the file, and the rest is the node's where memory
// is short. While nobody calls, nothing is done.
func (c counted) settle(ctx context.Context) {
	for {
		select {
		case <-c.called:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(settleTime):
			debug.FreeOSMemory()
			unmapProgram()
		case <-ctx.Done():
			return
		}
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
