// Command clock prints the monotonic time in ns at which its main begins, to stderr. It
// imports the least that takes, since the runtime initializes every package before main.
package main

import (
	"syscall"
	"unsafe"
)

const clockMonotonic = 1 // the package syscall has no name for it

func main() {
	var now syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	println(now.Nano())
}
