// Package alone makes the program that links it one that does one thing after
// another, from the moment on that the Go runtime has started.
//
// A process of some milliseconds pays for what the runtime prepares for long ones:
// processors of the scheduler, each with memory and threads of its own. In main it
// would be too late: by then packages were initialised on two of them, and giving
// one up costs what it has gathered. This package imports the runtime alone, so
// that it is initialised before all that takes long.
package alone

import "runtime"

func init() {
	runtime.GOMAXPROCS(1)
	// Nobody reads the profile, for which each half megabyte a stack is walked.
	runtime.MemProfileRate = 0
	growStack(false)
}

// growStack makes the first goroutine's stack as large as a call needs it, once, while
// there is nothing on it: growing step by step below package initialisers, libcni and
// encoding/json copies it, frame by frame, each time. It is the room in the frame that
// grows it; it is not used, which would touch its pages.
//
//go:noinline
func growStack(use bool) {
	if use {
		var room [48 << 10]byte
		runtime.KeepAlive(&room)
	}
}
