package webhook

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Bounds of a limiter, in bytes. A body of 7 MiB, the most that controller-runtime
// reads, fits several times into the share of one source.
const (
	maxCost  = 64 << 20
	maxShare = maxCost / 2
	connCost = 32 << 10 // roughly what TLS and net/http keep for a connection
)

// limiter bounds the memory and the descriptors that clients can take. Every pod of the
// cluster can reach the webhook, and nobody authenticates before the request.
//
// A connection costs connCost and the bytes of the request body that it has sent. Where
// a source address exceeds its share, or all sources together exceed max, the limiter
// closes connections of the source that costs most. It closes those first that have
// waited longest: in a handshake, in a header or for the next request. Next are those
// that still send a body. A request that has arrived is never closed, as its memory
// would not come back before the answer: while a source has only such requests, its
// further connections are refused.
type limiter struct {
	max, share int
	closed     func() // counts connections that the limiter closed or refused

	mu    sync.Mutex
	total int
	turns uint64 // counts changes of phase
	peers map[netip.Addr]*peer
}

// peer is one remote address with its connections.
type peer struct {
	address netip.Addr
	cost    int
	conns   map[*conn]struct{}
}

// phase is what a connection is doing, in the order in which connections are closed.
type phase int

const (
	waiting   phase = iota // in a handshake or a header, or idle
	sending                // its header has arrived, its body has not
	reviewing              // its request has arrived
)

// conn is a connection that a limiter counts. The limiter's mutex guards its fields.
type conn struct {
	net.Conn
	limiter *limiter
	peer    *peer
	cost    int
	phase   phase
	since   uint64 // turn of the limiter when phase was set
	gone    bool   // closed, and not counted anymore
}

// newLimiter returns a limiter that lets all connections cost total together, and those
// of one source share. It calls closed for each connection that it closes or refuses.
func newLimiter(total, share int, closed func()) *limiter {
	return &limiter{max: total, share: share, closed: closed, peers: map[netip.Addr]*peer{}}
}

// admit counts a new connection. It returns nil if the limiter refused the connection.
func (l *limiter) admit(raw net.Conn) *conn {
	c := &conn{Conn: raw, limiter: l}
	var address netip.Addr
	if tcp, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
		address = tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.peer = l.peers[address]; c.peer == nil {
		c.peer = &peer{address: address, conns: map[*conn]struct{}{}}
		l.peers[address] = c.peer
	}
	c.peer.conns[c] = struct{}{}
	l.turn(c, waiting)
	if !l.charge(c, connCost) {
		return nil
	}
	return c
}

// charge adds n to the cost of c and makes room for it. It returns false if c was
// closed. It and the methods that it calls need l.mu.
func (l *limiter) charge(c *conn, n int) bool {
	if c.gone {
		return false
	}
	c.cost += n
	c.peer.cost += n
	l.total += n
	for !c.gone && (c.peer.cost > l.share || l.total > l.max) {
		from := c.peer
		if from.cost <= l.share {
			from = l.dearest()
		}
		if victim := from.victim(); victim != nil {
			l.end(victim)
		} else {
			l.end(c)
		}
	}
	return !c.gone
}

// dearest returns the source that costs most.
func (l *limiter) dearest() (most *peer) {
	for _, s := range l.peers {
		if most == nil || s.cost > most.cost {
			most = s
		}
	}
	return most
}

// victim returns the connection that is closed next, or nil if the source has none but
// reviewing ones.
func (s *peer) victim() (first *conn) {
	for c := range s.conns {
		if c.phase != reviewing && (first == nil || c.phase < first.phase || c.phase == first.phase && c.since < first.since) {
			first = c
		}
	}
	return first
}

// turn sets the phase of c.
func (l *limiter) turn(c *conn, p phase) {
	l.turns++
	c.phase, c.since = p, l.turns
}

// end closes c to keep within the bounds.
func (l *limiter) end(c *conn) {
	l.closed()
	l.forget(c)
	c.Conn.Close() // c itself is closed by its server, which finds out by reading
}

// forget stops counting c.
func (l *limiter) forget(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	l.total -= c.cost
	c.peer.cost -= c.cost
	delete(c.peer.conns, c)
	if len(c.peer.conns) == 0 {
		delete(l.peers, c.peer.address)
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.limiter.mu.Lock()
	c.limiter.forget(c)
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}

// limitedListener admits the connections of a listener.
type limitedListener struct {
	net.Listener
	limiter *limiter
}

// Accept implements net.Listener.
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.limiter.admit(raw); c != nil {
			return c, nil
		}
	}
}

// connOf returns the counted connection under what net/http was given.
func connOf(c net.Conn) *conn {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	return c.(*conn)
}

// state is http.Server's ConnState. net/http calls a connection active once a header
// has arrived.
func (l *limiter) state(nc net.Conn, state http.ConnState) {
	c := connOf(nc)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.gone:
	case state == http.StateActive:
		l.turn(c, sending)
	case state == http.StateIdle:
		l.turn(c, waiting)
		body := c.cost - connCost
		c.cost -= body
		c.peer.cost -= body
		l.total -= body
	}
}

// body charges a connection for the body that is read from it.
type body struct {
	io.ReadCloser
	conn *conn
}

// errTooMuch is the error of reading from a connection that the limiter closed.
var errTooMuch = errors.New("the source of the request takes too much memory")

// Read implements io.Reader.
func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	l := b.conn.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.charge(b.conn, n) {
		return 0, errTooMuch
	}
	if errors.Is(err, io.EOF) {
		l.turn(b.conn, reviewing)
	}
	return n, err
}
