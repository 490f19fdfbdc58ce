// Package rtnl asks the kernel for network devices, however long the answer is.
//
// The netlink library reads 64 KiB of an answer and says "invalid argument" of a longer
// one. The alternative names of one network device can be that long, and whoever may
// administer it, as a pod with NET_ADMIN, can give it so many: then nobody who uses the
// library can look that device up, nor list those of its network namespace.
//
// Begin with [Open]: a [Socket] belongs to the network namespace in which it was opened.
// [Named] begins a question about one network device, and [Execute] asks it without a
// socket of one's own.
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

// SkipStatistics is what a question about network devices asks not to be told: of each
// VF its statistics. The netlink library does not have it. A list of network devices must
// ask for something or other: only then does the kernel make room for the longest of them,
// and else leaves out one that is too long, with all that come after it.
const SkipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS of the kernel's linux/rtnetlink.h

// tries is how often a list is asked for that changes while it is read.
const tries = 10

// Named returns the question about a network device of a name that [IsName] accepts,
// its own or an alternative one; mask says what is asked beside it, RTEXT_FILTER_*.
func Named(name string, mask uint32) *nl.NetlinkRequest {
	kind := unix.IFLA_IFNAME
	if len(name) >= unix.IFNAMSIZ {
		kind = unix.IFLA_ALT_IFNAME
	}
	req := request(unix.NLM_F_ACK, mask)
	req.AddData(nl.NewRtAttr(kind, nl.ZeroTerminated(name)))
	return req
}

// Listed returns the question about all network devices; mask is that of [Named], and not 0.
func Listed(mask uint32) *nl.NetlinkRequest { return request(unix.NLM_F_DUMP, mask) }

func request(flags int, mask uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, flags)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(mask)))
	return req
}

// IsName reports whether a network device can have name, as its own or an alternative
// one: 1 to 127 bytes and no NUL.
func IsName(name string) bool {
	const altNameSize = 128 // with the terminating NUL
	return name != "" && len(name) < altNameSize && !strings.Contains(name, "\x00")
}

// Socket asks in one network namespace. Several may use it.
type Socket struct {
	mu sync.Mutex // held while a request is answered
	fd int
}

// Open opens a socket in the network namespace of the calling thread.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &nl.SocketTimeoutTv); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Socket{fd: fd}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Link returns the network device of that name, its own or an alternative one; nil where
// there is none.
func (s *Socket) Link(name string) (netlink.Link, error) {
	if !IsName(name) {
		return nil, nil
	}
	bodies, err := s.Execute(Named(name, SkipStatistics))
	// The latter is what a kernel says that has no alternative names.
	if errors.Is(err, unix.ENODEV) || len(name) >= unix.IFNAMSIZ && errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err == nil && len(bodies) != 1 {
		err = fmt.Errorf("%d answers", len(bodies))
	}
	if err != nil {
		return nil, fmt.Errorf("network device %q: %w", name, err)
	}
	return netlink.LinkDeserialize(nil, bodies[0])
}

// Links returns all network devices.
func (s *Socket) Links() (links []netlink.Link, err error) {
	var bodies [][]byte
	err = nl.ErrDumpInterrupted
	for try := 0; try < tries && errors.Is(err, nl.ErrDumpInterrupted); try++ {
		bodies, err = s.Execute(Listed(SkipStatistics))
	}
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

// Execute is [Socket.Execute] in the network namespace of the calling thread.
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

// Execute sends a request of rtnetlink and returns the bodies of the messages that answer
// it. The request must have NLM_F_ACK or NLM_F_DUMP, which end the answer. A list that was
// interrupted is returned beside [nl.ErrDumpInterrupted], and may not be whole.
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

// receive reads what the kernel sends next, whole.
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
		return nil, nil // another process's
	}
	return syscall.ParseNetlinkMessage(text[:size])
}

// again calls what a signal may interrupt.
func again(call func() (int, unix.Sockaddr, error)) (n int, from unix.Sockaddr, err error) {
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, from, err = call()
	}
	return n, from, err
}

// answer is what has been read of an answer.
type answer struct {
	seq                uint32
	bodies             [][]byte
	ended, interrupted bool
}

// add adds one message; what it ends with may be an error.
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
