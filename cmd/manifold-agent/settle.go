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

// settleTime is how long after its start an agent has its sources, and the shortest time
// between two releases of memory while the agent is called.
const settleTime = 30 * time.Second

// counted is an agent that reports when it is called.
type counted struct {
	*agent.Agent
	called chan struct{} // has room for one
}

// newCounted returns a as if it had just been called, so that it settles after its start.
func newCounted(a *agent.Agent) counted {
	c := counted{a, make(chan struct{}, 1)}
	c.say()
	return c
}

func (c counted) say() {
	select {
	case c.called <- struct{}{}:
	default: // it is already known
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

// settle releases, until ctx ends, memory that calls needed for a moment: garbage, and
// pages of the program. The pages are the larger part: the kernel maps sixteen of them
// where one is used, and after the start most of them stay mapped. Pages that are used
// again are mapped again from the page cache; the node can reclaim the rest when memory
// is short. While nobody calls, settle does nothing.
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

// unmapProgram removes the program's pages from this process until they are used. Nothing
// is lost: it takes only mappings that cannot be written and to which neither a dynamic
// linker nor a debugger has written. If it fails, the pages stay.
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
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED) // on failure they stay
	}
}

// addresses are the bounds of a mapping: its first address, and the one after its last.
type addresses struct{ from, to uintptr }

// programPages returns the mappings in a process's smaps that are of the file exe, cannot
// be written, and still have the file's contents.
func programPages(smaps io.Reader, exe string) (out []addresses) {
	var of *addresses // the mapping that the lines describe; nil if it does not count
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case !strings.HasSuffix(fields[0], ":"):
			of = programMapping(fields, exe)
		case of == nil:
		case (fields[0] == "Anonymous:" || fields[0] == "Swap:") && fields[1] != "0":
			of = nil // pages of this process's own
		case fields[0] == "VmFlags:": // the last line
			out = append(out, *of)
		}
	}
	return out
}

// programMapping parses the first line of a mapping, split into fields. It returns nil
// for a mapping that is not of the file exe or that can be written.
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
