// Package rtnl looks up network devices in the kernel, however long the response is, and
// sends what the netlink library lacks.
//
// The netlink library reads at most 64 KiB of a response and reports "invalid argument"
// for a longer one. The alternative names of one network device can be that long, and
// anyone with administrative rights over the device, such as a pod with NET_ADMIN, can
// give it so many. Then no user of the library can look up that device or list the
// devices of its network namespace.
//
// Start with [Open]: a [Socket] belongs to the network namespace in which it was
// opened. [Named] builds a request about one network device, [Changed] one that changes
// it, and [Execute] sends them without a long-lived socket.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// SkipStatistics in a request's mask suppresses the statistics of the VFs. The netlink
// library lacks this flag. A request for all network devices must have some flag in its
// mask: only then does the kernel make room for the longest device; otherwise it omits
// a device that is too long and all devices after it.
const SkipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS of the kernel's linux/rtnetlink.h

// tries is how often a dump is requested that changes while it is read.
const tries = 10

// Named returns the request about the network device with a name that [IsName] accepts,
// its own or an alternative one. mask selects additional data, RTEXT_FILTER_*.
func Named(name string, mask uint32) *nl.NetlinkRequest {
	kind := unix.IFLA_IFNAME
	if len(name) >= unix.IFNAMSIZ {
		kind = unix.IFLA_ALT_IFNAME
	}
	req := request(unix.NLM_F_ACK, mask)
	req.AddData(nl.NewRtAttr(kind, nl.ZeroTerminated(name)))
	return req
}

// Listed returns the request about all network devices. mask is as for [Named], but not
// 0.
func Listed(mask uint32) *nl.NetlinkRequest { return request(unix.NLM_F_DUMP, mask) }

// Changed returns the request that gives the network device with that index these
// attributes, IFLA_*, all at once.
func Changed(index int, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

func request(flags int, mask uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, flags)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(mask)))
	return req
}

// IsName reports whether name can be the own or an alternative name of a network
// device: 1 to 127 bytes and no NUL.
func IsName(name string) bool {
	const altNameSize = 128 // with the terminating NUL
	return name != "" && len(name) < altNameSize && !strings.Contains(name, "\x00")
}

// Socket sends requests in one network namespace. It is safe for concurrent use.
type Socket struct {
	mu sync.Mutex // held while a request is being answered
	fd int
}

// Open opens a socket in the network namespace of the calling thread.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &nl.SocketTimeoutTv)
	if err == nil {
		// A connected socket takes messages of the kernel only. A pod with NET_ADMIN could
		// otherwise fill its buffer, so that there is no room for the kernel's answers.
		err = unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Socket{fd: fd}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Cookie returns the number by which the kernel knows the network namespace of the
// socket. No other namespace has it before the next boot, unlike the path and the inode
// of a namespace. The error is [unix.ENOPROTOOPT] on kernels before 5.14.
func (s *Socket) Cookie() (uint64, error) {
	return unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// Link returns the network device with that name, its own or an alternative one, or nil
// if there is none.
func (s *Socket) Link(name string) (netlink.Link, error) {
	if !IsName(name) {
		return nil, nil
	}
	bodies, err := s.Execute(Named(name, SkipStatistics))
	// Kernels without alternative names answer EINVAL to such a name.
	if errors.Is(err, unix.ENODEV) || len(name) >= unix.IFNAMSIZ && errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err == nil && len(bodies) != 1 {
		err = fmt.Errorf("got %d answers, want 1", len(bodies))
	}
	if err != nil {
		return nil, fmt.Errorf("network device %q: %w", name, err)
	}
	return netlink.LinkDeserialize(nil, bodies[0])
}

// Links returns all network devices of the namespace.
func (s *Socket) Links() (links []netlink.Link, err error) {
	bodies, err := s.Dump(Listed(SkipStatistics))
	for i := 0; i < len(bodies) && err == nil; i++ {
		var link netlink.Link
		link, err = netlink.LinkDeserialize(nil, bodies[i])
		links = append(links, link)
	}
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	return links, nil
}

// Dump is [Socket.Execute] for a request with NLM_F_DUMP. It repeats the request while
// changes interrupt the dump, up to tries times.
func (s *Socket) Dump(req *nl.NetlinkRequest) (bodies [][]byte, err error) {
	err = nl.ErrDumpInterrupted
	for try := 0; try < tries && errors.Is(err, nl.ErrDumpInterrupted); try++ {
		bodies, err = s.Execute(req)
	}
	return bodies, err
}

// Execute is [Socket.Execute] on a new socket in the network namespace of the calling
// thread.
func Execute(req *nl.NetlinkRequest) ([][]byte, error) {
	s, err := Open()
	if err != nil {
		return nil, err
	}
	bodies, err := s.Execute(req)
	if closed := s.Close(); err == nil {
		err = closed
	}
	return bodies, err
}

// Execute sends an rtnetlink request and returns the bodies of the messages in the
// response. The request must have NLM_F_ACK or NLM_F_DUMP, which end the response. An
// interrupted dump is returned together with [nl.ErrDumpInterrupted], and may be
// incomplete.
func (s *Socket) Execute(req *nl.NetlinkRequest) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.Sendto(s.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	a := answer{seq: req.Seq}
	for !a.ended {
		messages, err := receive(s.fd)
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if err := a.add(m); err != nil {
				return nil, err
			}
		}
	}
	if a.interrupted {
		return a.bodies, nl.ErrDumpInterrupted
	}
	return a.bodies, nil
}

// receive reads the next datagram of the kernel completely.
func receive(socket int) ([]syscall.NetlinkMessage, error) {
	size, _, err := again(func() (int, unix.Sockaddr, error) { return unix.Recvfrom(socket, nil, unix.MSG_PEEK|unix.MSG_TRUNC) })
	if err != nil {
		return nil, err
	}
	text := make([]byte, size)
	size, from, err := again(func() (int, unix.Sockaddr, error) { return unix.Recvfrom(socket, text, 0) })
	if err != nil {
		return nil, err
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil, nil // from another process
	}
	return syscall.ParseNetlinkMessage(text[:size])
}

// again repeats a call that a signal interrupted.
func again(call func() (int, unix.Sockaddr, error)) (n int, from unix.Sockaddr, err error) {
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, from, err = call()
	}
	return n, from, err
}

// answer is the part of a response that has been read.
type answer struct {
	seq                uint32
	bodies             [][]byte
	ended, interrupted bool
}

// add adds one message. The last message may carry an error.
func (a *answer) add(m syscall.NetlinkMessage) error {
	if m.Header.Seq != a.seq {
		return nil
	}
	a.interrupted = a.interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
	if m.Header.Type != unix.NLMSG_DONE && m.Header.Type != unix.NLMSG_ERROR {
		a.bodies = append(a.bodies, m.Data)
		return nil
	}
	a.ended = true
	if len(m.Data) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
		return syscall.Errno(-code)
	}
	return nil
}
