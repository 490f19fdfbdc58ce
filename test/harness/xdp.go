package harness

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// XDPGeneric is the flag that lets any network device take an XDP program:
// XDP_FLAGS_SKB_MODE of the kernel's linux/if_link.h.
const XDPGeneric = 1 << 1

// LoadXDP loads an XDP program that passes every packet, and returns its file
// descriptor, which the caller closes. It needs CAP_BPF.
func LoadXDP() (int, error) {
	const typeXDP = 6
	fd, err := loadProgram(typeXDP, 0x2_0000_00b7, 0x95) // r0 = XDP_PASS; exit
	if err != nil {
		return -1, fmt.Errorf("load an XDP program: %w", err)
	}
	return fd, nil
}

// LinkXDP attaches a program of [LoadXDP] to the network device with that index in the
// thread's network namespace by a BPF link. It stays attached as long as the returned
// descriptor of the link is open. It needs CAP_BPF and CAP_NET_ADMIN.
func LinkXDP(index, program int) (int, error) {
	const linkCreate, attachXDP = 28, 37
	attr := [16]uint32{uint32(program), uint32(index), attachXDP, XDPGeneric}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, linkCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return -1, fmt.Errorf("link an XDP program: %w", errno)
	}
	return int(fd), nil
}

// loadProgram loads a BPF program of that type and returns its file descriptor.
func loadProgram(kind uint32, code ...uint64) (int, error) {
	const progLoad = 5
	license := []byte("GPL\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		_             [48]byte
	}{kind: kind, count: uint32(len(code)), code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, progLoad, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
