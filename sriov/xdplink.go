package sriov

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and a type of link of the kernel's linux/bpf.h.
const (
	bpfObjGetInfoByFD = 15
	bpfLinkGetNextID  = 31
	bpfLinkTypeXDP    = 6
)

// xdpLink is the beginning of the kernel's bpf_link_info, as it is for an XDP program.
type xdpLink struct {
	kind, id, program, _ uint32
	index                uint32 // of the network device; 0 after the device has been deleted
	_                    [7]uint32
}

// errNoXDPLink means that no BPF link attaches a program to a network device.
var errNoXDPLink = errors.New("no BPF link attaches it")

// detachXDPLinks detaches an XDP program from the network device with that index that
// BPF links attach to it, which netlink refuses to detach. A link does not tell the
// network namespace of its device. But a link with the same program and the same index
// in another namespace must be of whoever attached the program here.
func detachXDPLinks(index int, program uint32) error {
	wanted := func(l *xdpLink) bool {
		return l.kind == bpfLinkTypeXDP && l.program == program && l.index == uint32(index)
	}
	none := errNoXDPLink
	var at struct{ after, next, flags uint32 }
	for {
		_, err := bpf(bpfLinkGetNextID, &at)
		if errors.Is(err, unix.ENOENT) { // that was the last one
			return none
		}
		if err != nil {
			return fmt.Errorf("list BPF links: %w", err)
		}
		detached, err := detachLinkIf(at.next, wanted)
		if err != nil {
			return err
		}
		if detached {
			none = nil
		}
		at.after = at.next
	}
}

// detachLinkIf detaches the program of the BPF link with that ID if the link is wanted,
// and reports whether it did.
func detachLinkIf(id uint32, wanted func(*xdpLink) bool) (detached bool, err error) {
	fd, err := bpf(bpfLinkGetByID, &struct{ id, _, _ uint32 }{id: id})
	if errors.Is(err, unix.ENOENT) {
		return false, nil // it has gone in the meantime
	}
	if err != nil {
		return false, fmt.Errorf("BPF link %d: %w", id, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	info := &xdpLink{}
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(info)
	_, err = bpf(bpfObjGetInfoByFD, &struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))})
	if err == nil && wanted(info) {
		detached = true
		_, err = bpf(bpfLinkDetach, &struct{ fd uint32 }{uint32(fd)})
	}
	if err != nil {
		return false, fmt.Errorf("BPF link %d: %w", id, err)
	}
	return detached, nil
}
