// Package alone makes the program that links it do one thing at a time, from the start
// of the Go runtime on.
//
// A process that lives for milliseconds pays for what the runtime prepares for
// long-lived ones: the scheduler's processors, each with memory and threads of its own.
// Setting this in main would be too late: by then packages have been initialized on two
// processors, and giving one up costs what it has cached. This package imports only
// runtime, so it is initialized before everything that takes long.
package alone

import "runtime"

func init() {
	runtime.GOMAXPROCS(1)
	// Nobody reads the profile, and it costs a walk of the stack per half megabyte
	// allocated.
	runtime.MemProfileRate = 0
	growStack(false)
}

// growStack grows the first goroutine's stack to the size that a call needs, once,
// while there is nothing on it. Growing step by step, below package initializers,
// libcni and encoding/json, copies the stack frame by frame each time. The room in the
// frame grows the stack; it is not used, because that would touch its pages.
//
//go:noinline
func growStack(use bool) {
	if use {
		var room [48 << 10]byte
		runtime.KeepAlive(&room)
	}
}
