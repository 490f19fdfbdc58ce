package harness

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Crowd fills the receive buffers of all rtnetlink sockets of the thread's network
// namespace, as anyone with NET_ADMIN there can.
func Crowd() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/thread-self/net/netlink")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var socket string
		var protocol int
		var port uint32
		if n, _ := fmt.Sscan(line, &socket, &protocol, &port); n < 3 || protocol != unix.NETLINK_ROUTE || port == 0 {
			continue
		}
		to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}
		for err = nil; err == nil; {
			err = unix.Sendto(fd, make([]byte, 4<<10), unix.MSG_DONTWAIT, to)
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return nil
}
