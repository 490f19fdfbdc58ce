package main

import (
	"log/slog"
	"os"
	"testing"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestUnmapProgram: pages of the program leave this process, which goes on.
func TestUnmapProgram(t *testing.T) {
	resident := func() int64 { return harness.ProcessMemory(os.Getpid(), "RssFile:") }
	before := resident()
	unmapProgram()
	if after := resident(); after >= before {
		t.Errorf("%d KiB of files are resident, and %d were", after, before)
	}
}

// TestCountedSaysWhenItIsCalled: once after its start, and once for any number of calls.
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
	for line, want := range map[string]bool{
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/agent":           true,
		"0110f000-01f14000 r--p 00d0f000 fe:00 3409   /opt/agent":           true,
		"01f14000-01faa000 rw-p 01b14000 fe:00 3409   /opt/agent":           false, // written: it would be lost
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/agent (deleted)": false, // replaced, but kept
		"00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/other":           false,
		"7ffd8a5f2000-7ffd8a5f4000 r-xp 00000000 00:00 0   [vdso]":          false,
		"2853e4000000-2853e8000000 rw-p 00000000 00:00 0":                   false,
		"0110f000-00401000 r-xp 00001000 fe:00 3409   /opt/agent":           false,
		"x-y r-xp 00001000 fe:00 3409   /opt/agent":                         false,
		"": false,
	} {
		if _, _, ok := programPages(line, "/opt/agent"); ok != want {
			t.Errorf("%q: %t", line, ok)
		}
	}
	if from, to, _ := programPages("00401000-0110f000 r-xp 00001000 fe:00 3409   /opt/agent", "/opt/agent"); from != 0x401000 || to != 0x110f000 {
		t.Errorf("%x to %x", from, to)
	}
}
