// Package connlimit bounds what the clients of an HTTP server can take before anybody
// knows who they are: connections, and the memory that each of them holds. Every address
// gets a share, so that one pod with many connections cannot keep others from being
// answered.
//
// A [Limiter] serves any number of ports. Accept connections through
// [Limiter.Listener], below TLS if there is TLS, and pass each http.Server to
// [Limiter.ConfigureServer] before it serves:
//
//	limiter := connlimit.New(bounds, closed.Inc)
//	limiter.ConfigureServer(srv)
//	err := srv.Serve(tls.NewListener(limiter.Listener(l), config))
//
// A connection costs [Bounds].Connection and the bytes of the request body that it has
// sent. Where a source address exceeds its share, or all sources together exceed the
// total, the limiter closes connections of the source that costs most. It closes those
// first that have waited longest: in a handshake, in a header or for the next request.
// Next are those that still send a body. A request that has arrived is never closed, as
// its memory would not come back before the answer: while a source has only such
// requests, its further connections are refused.
//
// Enough sources can take the total with requests alone; then others are refused. The
// host itself is not: connections whose two ends have one address have a share of their
// own beside the total. On the host's network these are the kubelet's probes.
//
// The package limits numbers, not time. Timeouts for the handshake, the header, the body
// and the answer belong in the http.Server.
package connlimit

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Bounds are what connections may take, in bytes. All must be positive, and none may be
// greater than the next.
type Bounds struct {
	Connection int // of one connection, without the body of its request
	PerSource  int // of the connections of one address
	Total      int // of all connections but those of the host itself
}

// Limiter counts connections by source address and keeps them within bounds. It is safe
// for concurrent use.
type Limiter struct {
	bounds Bounds
	closed func()

	mu    sync.Mutex
	total int    // of all sources but the local ones
	turns uint64 // counts changes of phase
	peers map[netip.Addr]*peer
}

// peer is one remote address with its connections.
type peer struct {
	address netip.Addr
	local   bool // an address of this host: not counted in the limiter's total
	cost    int
	conns   map[*conn]struct{}
}

// phase is what a connection is doing, in the order in which connections are closed.
type phase int

const (
	waiting phase = iota // in a handshake or a header, or idle
	sending              // its header has arrived, its body has not
	arrived              // its request has arrived, its answer is not complete
)

// conn is a connection that a limiter counts. The limiter's mutex guards its fields.
type conn struct {
	net.Conn
	limiter *Limiter
	peer    *peer
	cost    int
	phase   phase
	since   uint64 // turn of the limiter when phase was set
	gone    bool   // closed, and not counted anymore
}

// New returns a Limiter with these bounds. It calls closed for each connection that it
// closes or refuses, with a lock held: closed must return soon and must not call the
// Limiter.
func New(bounds Bounds, closed func()) *Limiter {
	return &Limiter{bounds: bounds, closed: closed, peers: map[netip.Addr]*peer{}}
}

// addressOf returns the IP address of a TCP address, else the zero Addr.
func addressOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// admit counts a new connection. It returns nil if the limiter refused the connection.
func (l *Limiter) admit(raw net.Conn) *conn {
	c := &conn{Conn: raw, limiter: l}
	address := addressOf(raw.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.peer = l.peers[address]; c.peer == nil {
		c.peer = &peer{address: address, local: address.IsValid() && address == addressOf(raw.LocalAddr()), conns: map[*conn]struct{}{}}
		l.peers[address] = c.peer
	}
	c.peer.conns[c] = struct{}{}
	l.turn(c, waiting)
	if !l.charge(c, l.bounds.Connection) {
		return nil
	}
	return c
}

// charge adds n to the cost of c and makes room for it. It returns false if c was
// closed. It and the methods that it calls need l.mu.
func (l *Limiter) charge(c *conn, n int) bool {
	if c.gone {
		return false
	}
	l.add(c, n)
	for !c.gone && (c.peer.cost > l.bounds.PerSource || l.total > l.bounds.Total) {
		l.end(l.victim(c))
	}
	return !c.gone
}

// add adds n, which may be negative, to the cost of c.
func (l *Limiter) add(c *conn, n int) {
	c.cost += n
	c.peer.cost += n
	if !c.peer.local {
		l.total += n
	}
}

// victim returns the connection to close so that c fits in: one of the source of c if
// that source exceeds its share, else one of the source that costs most among those that
// have any to close.
func (l *Limiter) victim(c *conn) *conn {
	most, first := c.peer, c.peer.first()
	if most.cost <= l.bounds.PerSource {
		for _, p := range l.peers {
			if p.local || p.cost <= most.cost {
				continue
			}
			if f := p.first(); f != nil {
				most, first = p, f
			}
		}
	}
	if first == nil {
		return c
	}
	return first
}

// first returns the connection of the source that is closed first, or nil if the source
// has none but those whose request has arrived.
func (p *peer) first() (first *conn) {
	for c := range p.conns {
		if c.phase != arrived && (first == nil || c.phase < first.phase || c.phase == first.phase && c.since < first.since) {
			first = c
		}
	}
	return first
}

// turn sets the phase of c.
func (l *Limiter) turn(c *conn, p phase) {
	l.turns++
	c.phase, c.since = p, l.turns
}

// end closes c to keep within the bounds.
func (l *Limiter) end(c *conn) {
	l.closed()
	l.forget(c)
	c.Conn.Close() // c itself is closed by its server, which finds out by reading
}

// forget stops counting c.
func (l *Limiter) forget(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	l.add(c, -c.cost)
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

// Listener returns a listener that accepts the connections of raw which l admits. It
// closes the others at once. Only servers that [Limiter.ConfigureServer] has prepared
// may serve the listener: l cannot tell an idle connection from a busy one without them.
func (l *Limiter) Listener(raw net.Listener) net.Listener { return listener{raw, l} }

// listener admits the connections of a listener.
type listener struct {
	net.Listener
	limiter *Limiter
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
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

// connKey is the key of a request's *conn in its context.
type connKey struct{}

// ConfigureServer makes srv tell l what each connection does. It wraps srv.Handler, which
// must be set, and sets srv.ConnState and srv.ConnContext, which must not be. The server
// must speak HTTP/1, where a connection has one request at a time. Reading the body of a
// request whose source takes too much fails, and the connection is closed.
func (l *Limiter) ConfigureServer(srv *http.Server) {
	handler := srv.Handler
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		if r.Body == http.NoBody {
			l.arrived(c)
		} else {
			r.Body = body{r.Body, c}
		}
		handler.ServeHTTP(w, r)
	})
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, connOf(c))
	}
	srv.ConnState = l.state
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
func (l *Limiter) state(nc net.Conn, state http.ConnState) {
	c := connOf(nc)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.gone:
	case state == http.StateActive:
		l.turn(c, sending)
	case state == http.StateIdle:
		l.turn(c, waiting)
		l.add(c, l.bounds.Connection-c.cost)
	}
}

// arrived notes that a request without a body has arrived.
func (l *Limiter) arrived(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn(c, arrived)
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
		l.turn(b.conn, arrived)
	}
	return n, err
}
