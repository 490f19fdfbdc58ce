package main

import (
	"bufio"
	"context"
	"io"
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
// Nothing is lost, since only mappings are taken that cannot be written and in which
// nothing was, by a dynamic linker or a debugger; where it fails, the pages stay.
func unmapProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, m := range programPages(f, exe) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED) // then they stay
	}
}

// addresses are those of a mapping, from its first to behind its last.
type addresses struct{ from, to uintptr }

// programPages returns, of a process's smaps, the mappings of the file exe that cannot
// be written and are as the file has them.
func programPages(smaps io.Reader, exe string) (out []addresses) {
	var of *addresses // the mapping that lines are of, nil for another
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case !strings.HasSuffix(fields[0], ":"):
			of = programMapping(fields, exe)
		case of == nil:
		case (fields[0] == "Anonymous:" || fields[0] == "Swap:") && fields[1] != "0":
			of = nil // pages that are this process's own
		case fields[0] == "VmFlags:": // the last line
			out = append(out, *of)
		}
	}
	return out
}

// programMapping reads the first line of a mapping, in fields; nil for one that is
// not of the file exe, or can be written.
func programMapping(fields []string, exe string) *addresses {
	if len(fields) != 6 || fields[5] != exe || !strings.HasPrefix(fields[1], "r-") {
		return nil
	}
	begin, end, _ := strings.Cut(fields[0], "-")
	from, err1 := strconv.ParseUint(begin, 16, 64)
	to, err2 := strconv.ParseUint(end, 16, 64)
	if err1 != nil || err2 != nil || from >= to {
		return nil
	}
	return &addresses{uintptr(from), uintptr(to)}
}
