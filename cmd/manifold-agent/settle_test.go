package main

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestUnmapProgram proves that the program's pages leave this process, which goes on.
func TestUnmapProgram(t *testing.T) {
	resident := func() int64 { return harness.ProcessMemory(os.Getpid(), "RssFile:") }
	before := resident()
	unmapProgram()
	if after := resident(); after >= before {
		t.Errorf("%d KiB of files are resident, and %d were", after, before)
	}
}

// TestCountedSaysWhenItIsCalled: a start is reported once, and so is any number of calls.
func TestCountedSaysWhenItIsCalled(t *testing.T) {
	c := newCounted(agent.New(agent.Sources{}, slog.New(slog.DiscardHandler), nil))
	called := func() bool {
		select {
		case <-c.called:
			return true
		default:
			return false
		}
	}
	if !called() || called() {
		t.Error("a start is not one call")
	}
	for _, call := range []func(){
		func() { _, _ = c.Plan(t.Context(), plan.Request{}) }, // it is refused
		func() { c.Observe(t.Context(), plan.Operation{}) },
	} {
		call()
		call()
		if !called() || called() {
			t.Error("two calls are not said once")
		}
	}
	var _ plan.Inspector = c // the socket's other questions reach the agent
}

func TestProgramPages(t *testing.T) {
	for first, want := range map[string]bool{
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/agent":           true,
		"0110f000-01f14000 r--p 00d0f000 fe:00 3409   /opt/agent":           true,
		"01f14000-01faa000 rw-p 01b14000 fe:00 3409   /opt/agent":           false, // can be written
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/agent (deleted)": false, // replaced, but kept
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/other":           false,
		"7ffd8a5f2000-7ffd8a5f4000 r-xp 00000000 00:00 0   [vdso]":          false,
		"2853e4000000-2853e8000000 rw-p 00000000 00:00 0":                   false,
		"0110f000-00401000 r-xp 00001000 fe:00 3409   /opt/agent":           false,
		"x-y r-xp 00001000 fe:00 3409   /opt/agent":                         false,
		"": false,
	} {
		clean := first + "\nSize:  128 kB\nPrivate_Dirty:  64 kB\nAnonymous:   0 kB\nSwap:        0 kB\nVmFlags: rd ex mr mw me\n"
		if got := programPages(strings.NewReader(clean), "/opt/agent"); (len(got) == 1) != want {
			t.Errorf("%q: %x", first, got)
		}
		// What a dynamic linker wrote before the mapping was protected, or a debugger
		// since.
		for _, own := range []string{"Anonymous:   ", "Swap:        "} {
			if got := programPages(strings.NewReader(strings.Replace(clean, own+"0", own+"8", 1)), "/opt/agent"); got != nil {
				t.Errorf("%q, written to: %x", first, got)
			}
		}
	}
	two := "00401000-0110f000 r-xp 00001000 fe:00 3409 /opt/agent\nVmFlags: rd\n7f00-7f01 r--p 0 fe:00 7 /lib/x\nVmFlags: rd\n"
	if got := programPages(strings.NewReader(two), "/opt/agent"); !slices.Equal(got, []addresses{{0x401000, 0x110f000}}) {
		t.Errorf("%x", got)
	}
}
