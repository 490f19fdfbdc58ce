package sriov

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Since Linux 6.6, BPF programs can be attached to a network device itself (TCX). Like
// XDP programs they stay attached when the device moves to another network namespace,
// and see or change the traffic of its next user. Netlink does not report them.

// Commands and attach types of the kernel's linux/bpf.h.
const (
	bpfProgDetach  = 9
	bpfProgGetByID = 13
	bpfProgQuery   = 16
	bpfLinkGetByID = 30
	bpfLinkDetach  = 34
	bpfTCXIngress  = 46
	bpfTCXEgress   = 47
	mostTCX        = 64 // per direction: BPF_MPROG_MAX of the kernel
)

// tcxProgram is a program that is attached to a network device.
type tcxProgram struct {
	id        uint32
	link      uint32 // ID of the BPF link that attaches it; 0 for none
	direction uint32 // bpfTCXIngress or bpfTCXEgress
}

// bpf calls the kernel with the attributes of a command, and returns its result.
func bpf[T any](command uintptr, attr *T) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// tcxOf returns the programs of a network device of the thread's network namespace. It
// returns none where the kernel has none or does not tell the caller, who needs
// CAP_NET_ADMIN.
func tcxOf(index int) (out []tcxProgram, err error) {
	for _, direction := range []uint32{bpfTCXIngress, bpfTCXEgress} {
		ids, links := make([]uint32, mostTCX), make([]uint32, mostTCX)
		attr := struct {
			index, direction, queryFlags, attachFlags uint32
			ids                                       uint64
			count, _                                  uint32
			idFlags, links, linkFlags, revision       uint64
		}{
			index: uint32(index), direction: direction, count: mostTCX,
			ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), links: uint64(uintptr(unsafe.Pointer(&links[0]))),
		}
		_, err := bpf(bpfProgQuery, &attr)
		runtime.KeepAlive(ids)
		runtime.KeepAlive(links)
		if errors.Is(err, unix.ENOENT) { // none in this direction
			continue
		}
		for _, unknown := range []error{unix.EINVAL, unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.ENODEV, unix.E2BIG} {
			if errors.Is(err, unknown) {
				return nil, nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("TCX programs: %w", err)
		}
		for i := range min(attr.count, mostTCX) {
			out = append(out, tcxProgram{id: ids[i], link: links[i], direction: direction})
		}
	}
	return out, nil
}

// dropTCX detaches the TCX programs of a network device that are not in keep.
func dropTCX(index int, keep []uint32) error {
	programs, err := tcxOf(index)
	problems := []error{err}
	for _, p := range programs {
		if slices.Contains(keep, p.id) {
			continue
		}
		if err := p.detach(index); err != nil {
			problems = append(problems, fmt.Errorf("TCX program %d: %w", p.id, err))
		}
	}
	return errors.Join(problems...)
}

// detach detaches the program from a network device: through its BPF link if it has one,
// which keeps it from being detached otherwise.
func (p tcxProgram) detach(index int) error {
	get, id := uintptr(bpfProgGetByID), p.id
	if p.link != 0 {
		get, id = bpfLinkGetByID, p.link
	}
	fd, err := bpf(get, &struct{ id, _, _ uint32 }{id: id})
	if err != nil {
		return err
	}
	if p.link != 0 {
		_, err = bpf(bpfLinkDetach, &struct{ fd uint32 }{uint32(fd)})
	} else {
		_, err = bpf(bpfProgDetach, &struct{ index, fd, direction uint32 }{uint32(index), uint32(fd), p.direction})
	}
	return errors.Join(err, unix.Close(fd))
}
