package connlimit

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// unit is what a connection costs in these tests, in bytes.
const unit = 1000

// idle is a connection that does nothing.
type idle struct {
	net.Conn
	from   net.Addr
	closed bool
}

// RemoteAddr implements net.Conn.
func (c *idle) RemoteAddr() net.Addr { return c.from }

// LocalAddr implements net.Conn.
func (*idle) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 250)} }

// Close implements net.Conn.
func (c *idle) Close() error { c.closed = true; return nil }

// admitted has l admit a connection from 10.0.0.from.
func admitted(l *Limiter, from byte) (*conn, *idle) {
	raw := &idle{from: &net.TCPAddr{IP: net.IPv4(10, 0, 0, from)}}
	return l.admit(raw), raw
}

// TestWhoIsClosed proves the order: the source that costs most, and of its connections
// those that have waited longest, then those that send, and never those whose request
// has arrived.
func TestWhoIsClosed(t *testing.T) {
	closed := 0
	l := New(Bounds{Connection: unit, PerSource: 5 * unit, Total: 8 * unit}, func() { closed++ })
	greedy := map[string]*idle{}
	var sender *conn
	for _, name := range []string{"arrived", "sending", "first", "second", "third"} {
		c, raw := admitted(l, 1)
		switch greedy[name] = raw; name {
		case "arrived":
			l.turn(c, arrived)
		case "sending":
			l.turn(c, sending)
			sender = c
		}
	}
	expect := func(what string, names ...string) {
		t.Helper()
		for name, c := range greedy {
			if gone := slices.Contains(names, name); c.closed != gone {
				t.Errorf("%s: %s closed: %t", what, name, c.closed)
			}
		}
	}
	charge := func(n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.charge(sender, n)
	}
	expect("within its share")
	for range 3 {
		if c, _ := admitted(l, 2); c == nil {
			t.Fatal("another source is refused while there is room")
		}
	}
	expect("everything is taken")
	if c, _ := admitted(l, 3); c == nil {
		t.Fatal("a third source is refused")
	}
	expect("a third source comes", "first")
	charge(unit)
	expect("a body costs as much as a connection", "first", "second")
	charge(3 * unit)
	expect("a body exceeds the share", "first", "second", "third", "sending")
	if l.peers[netip.MustParseAddr("10.0.0.1")].cost != unit || closed != 4 {
		t.Errorf("%d closed, left: %+v", closed, l.peers)
	}
}

// TestArrivedRequestsAreKept proves that a source whose share is taken by requests that
// have arrived is refused until one is answered, and that others are not.
func TestArrivedRequestsAreKept(t *testing.T) {
	l := New(Bounds{Connection: unit, PerSource: 2 * unit, Total: 4 * unit}, func() {})
	first, raw := admitted(l, 1)
	second, _ := admitted(l, 1)
	l.turn(first, arrived)
	l.turn(second, arrived)
	if c, refused := admitted(l, 1); c != nil || !refused.closed || raw.closed {
		t.Errorf("beyond the share: admitted %t, refused connection closed: %t, the first closed: %t", c != nil, refused.closed, raw.closed)
	}
	if c, _ := admitted(l, 2); c == nil {
		t.Error("another source is refused")
	}
	first.Close()
	if c, _ := admitted(l, 1); c == nil {
		t.Error("refused after an answer")
	}
}

// TestTakenByRequests proves whom a total that is taken by requests in progress keeps
// out: not a source while another, costlier one has connections to close, not the host
// itself, and else the newcomer.
func TestTakenByRequests(t *testing.T) {
	l := New(Bounds{Connection: unit, PerSource: 3 * unit, Total: 6 * unit}, func() {})
	for range 3 {
		c, _ := admitted(l, 1)
		l.turn(c, arrived)
	}
	_, waits := admitted(l, 2)
	second, _ := admitted(l, 2)
	l.turn(second, arrived)
	_, other := admitted(l, 3)
	if c, _ := admitted(l, 4); c == nil || !waits.closed || other.closed {
		t.Errorf("with a connection to close: admitted %t, closed %t, %t", c != nil, waits.closed, other.closed)
	}
	if c, _ := admitted(l, 5); c != nil || other.closed {
		t.Errorf("with none of a costlier source: admitted %t, closed %t", c != nil, other.closed)
	}
	for i := range 4 {
		if c, _ := admitted(l, 250); c == nil {
			t.Errorf("connection %d of the host itself is refused", i)
		}
	}
	if l.total != 6*unit || other.closed || l.peers[netip.MustParseAddr("10.0.0.250")].cost != 3*unit {
		t.Errorf("%d, closed %t, %+v", l.total, other.closed, l.peers)
	}
}

// TestForms proves that the forms of one IP address share one share.
func TestForms(t *testing.T) {
	l := New(Bounds{Connection: unit, PerSource: unit, Total: 8 * unit}, func() {})
	for _, forms := range [][]net.TCPAddr{
		{{IP: net.IP{10, 0, 0, 1}}, {IP: net.ParseIP("::ffff:10.0.0.1"), Port: 7}},
		{{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, {IP: net.ParseIP("fe80::1"), Zone: "eth1"}},
	} {
		first, second := &idle{from: &forms[0]}, &idle{from: &forms[1]}
		l.admit(first)
		l.admit(second)
		if !first.closed || second.closed {
			t.Errorf("%v: %t %t", forms, first.closed, second.closed)
		}
	}
}

// served is a server within bounds. Its handler reads the request's body, and answers
// the path /slow only when open is closed.
type served struct {
	*Limiter
	t      *testing.T
	srv    *httptest.Server
	asked  chan struct{} // receives once for each request of /slow
	open   chan struct{}
	closed atomic.Int64
}

// serve returns a server that listens but does not serve yet.
func serve(t *testing.T, b Bounds) *served {
	s := &served{t: t, asked: make(chan struct{}, 100), open: make(chan struct{})}
	s.Limiter = New(b, func() { s.closed.Add(1) })
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if r.URL.Path == "/slow" {
			s.asked <- struct{}{}
			select {
			case <-s.open:
			case <-t.Context().Done():
			}
		}
		fmt.Fprint(w, "ok")
	}))
	s.ConfigureServer(s.srv.Config)
	s.srv.Listener = s.Listener(s.srv.Listener)
	t.Cleanup(s.srv.Close)
	return s
}

// dial connects from an address of the loopback network.
func (s *served) dial(from string) net.Conn {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", s.srv.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a request over c.
func (s *served) ask(c net.Conn, method, path, body string) {
	s.t.Helper()
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body); err != nil {
		s.t.Fatal(err)
	}
}

// answered reads an answer from c, or returns false if the server has closed c.
func (s *served) answered(c net.Conn) bool {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}

// cost returns what the connections of a source cost, and what all of them cost.
func (s *served) cost(from string) (source, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[netip.MustParseAddr(from)]; p != nil {
		source = p.cost
	}
	return source, s.total
}

// waiting returns how many connections wait for a request.
func (s *served) waiting() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		for c := range p.conns {
			if c.phase == waiting {
				n++
			}
		}
	}
	return n
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestRequestsBeingAnswered proves that too large a body and a flood of its own source
// close idle connections and those in a header or a body, but none whose request is being
// answered, with a body or without; and that a connection is idle again once its request
// is answered.
func TestRequestsBeingAnswered(t *testing.T) {
	s := serve(t, Bounds{Connection: unit, PerSource: 4*unit + 1, Total: 8 * unit})
	s.srv.Start()
	get, post := s.dial("127.0.0.2"), s.dial("127.0.0.2")
	s.ask(get, http.MethodGet, "/slow", "")
	s.ask(post, http.MethodPost, "/slow", "x")
	<-s.asked
	<-s.asked
	greedy := s.dial("127.0.0.2")
	s.ask(greedy, http.MethodPost, "/", strings.Repeat("x", 5*unit))
	eventually(t, "the sender of too much to be closed", func() bool { return s.closed.Load() == 1 })
	kept := s.dial("127.0.0.2")
	s.ask(kept, http.MethodGet, "/", "")
	if !s.answered(kept) {
		t.Fatal("not answered within the share")
	}
	eventually(t, "the answered connection to be idle", func() bool { return s.waiting() == 1 })
	for range 20 {
		s.dial("127.0.0.2")
	}
	if _, err := kept.Read(make([]byte, 1)); err == nil {
		t.Error("an idle connection outlives newer ones")
	}
	eventually(t, "the flood to be closed", func() bool { return s.closed.Load() == 1+19 })
	close(s.open)
	for name, c := range map[string]net.Conn{"GET": get, "POST": post} {
		if !s.answered(c) {
			t.Errorf("%s: the request was closed while it was being answered", name)
		}
	}
	eventually(t, "the answered connections to be idle", func() bool { return s.waiting() == 4 })
	for range 4 {
		s.dial("127.0.0.2")
	}
	for _, c := range []net.Conn{get, post} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("an answered connection outlives newer ones")
		}
	}
}

// TestBodies proves that bodies count, that reading too much fails, and that a body
// counts no more once its request is answered.
func TestBodies(t *testing.T) {
	s := serve(t, Bounds{Connection: unit, PerSource: 4 * unit, Total: 8 * unit})
	s.srv.Start()
	c := s.dial("127.0.0.2")
	for range 3 {
		s.ask(c, http.MethodPost, "/", strings.Repeat("x", 3*unit))
		if !s.answered(c) {
			t.Fatal("a body within the share is not taken")
		}
	}
	eventually(t, "the body to count no more", func() bool { source, _ := s.cost("127.0.0.2"); return source == unit })
	s.ask(c, http.MethodPost, "/", strings.Repeat("x", 3*unit+1))
	if s.answered(c) {
		t.Error("a body beyond the share is taken")
	}
}

// TestFlood proves, over TCP and TLS, that sources which open connections without end
// are kept to their share and do not keep another from being answered, and that nothing
// is counted after they have left.
func TestFlood(t *testing.T) {
	for name, start := range map[string]func(*httptest.Server){"TCP": (*httptest.Server).Start, "TLS": (*httptest.Server).StartTLS} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Bounds{Connection: unit, PerSource: 8 * unit, Total: 16 * unit})
			start(s.srv)
			var conns []net.Conn
			for range 100 {
				conns = append(conns, s.dial("127.0.0.2"), s.dial("127.0.0.3"))
			}
			client := s.srv.Client()
			client.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.4")}}).DialContext
			for range 20 {
				resp, err := client.Get(s.srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				client.CloseIdleConnections()
			}
			eventually(t, "the floods to be kept to what they may have", func() bool { return s.closed.Load() >= 200-16 })
			for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
				if source, total := s.cost(from); source > 8*unit || total > 16*unit {
					t.Errorf("%s takes %d, all take %d", from, source, total)
				}
			}
			for _, c := range conns {
				c.Close()
			}
			eventually(t, "nothing to be counted", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.total == 0 && len(s.peers) == 0
			})
		})
	}
}
