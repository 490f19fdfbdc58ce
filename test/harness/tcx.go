package harness

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Directions of TCX programs: BPF_TCX_INGRESS and BPF_TCX_EGRESS of the kernel's
// linux/bpf.h.
const (
	TCXIngress = 46
	TCXEgress  = 47
)

// AttachTCX attaches a program that passes every packet to the network device with that
// index in the thread's network namespace. With link, the program stays attached as long
// as the returned descriptor of its BPF link is open; without, it stays attached until
// somebody detaches it, and the descriptor is that of the program. The caller closes the
// descriptor. It needs CAP_BPF and CAP_NET_ADMIN.
func AttachTCX(index int, direction uint32, link bool) (int, error) {
	const progAttach, linkCreate, typeSchedCLS = 8, 28, 3
	fd, err := loadProgram(typeSchedCLS, 0xffffffff_0000_00b7, 0x95) // r0 = TCX_NEXT; exit
	if err != nil {
		return -1, fmt.Errorf("load a TCX program: %w", err)
	}
	if link {
		create := [16]uint32{uint32(fd), uint32(index), direction}
		made, _, errno := unix.Syscall(unix.SYS_BPF, linkCreate, uintptr(unsafe.Pointer(&create)), unsafe.Sizeof(create))
		_ = unix.Close(fd)
		if errno != 0 {
			return -1, fmt.Errorf("link a TCX program: %w", errno)
		}
		return int(made), nil
	}
	attach := [8]uint32{uint32(index), uint32(fd), direction}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, progAttach, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("attach a TCX program: %w", errno)
	}
	return fd, nil
}
