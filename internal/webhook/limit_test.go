package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/manifold-cni/manifold/internal/connlimit"
	"github.com/manifold-cni/manifold/netattach"
)

// gate is a source of definitions that answers when it is opened.
type gate struct {
	mu sync.Mutex // of source
	source
	asked chan struct{} // holds 1 once somebody has asked
	open  chan struct{}
}

// Local implements definitions.
func (g *gate) Local(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	select {
	case g.asked <- struct{}{}:
	default:
	}
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.source.Definition(ctx, namespace, name)
}

// replica is a server of reviews on 127.0.0.1.
type replica struct {
	*server
	t      *testing.T
	roots  *x509.CertPool
	closed atomic.Int64 // connections that the limiter closed or refused
}

// newReplica serves reviews within bounds until the test ends.
func newReplica(t *testing.T, d definitions, total, share int) *replica {
	t.Helper()
	m := &material{}
	if _, err := m.next([]string{"webhook"}, lifetimes{ca: 30 * time.Hour, serving: 6 * time.Hour}, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	ctrllog.SetLogger(logr.Discard())
	r := &replica{t: t, roots: x509.NewCertPool(), server: &server{Options: Options{Host: "127.0.0.1", Health: none, Metrics: none}, log: slog.New(slog.DiscardHandler)}}
	r.roots.AppendCertsFromPEM(m.bundle())
	r.limiter = connlimit.New(connlimit.Bounds{Connection: bounds.Connection, PerSource: share, Total: total}, func() { r.closed.Add(1) })
	var err error
	if r.manager, err = manager.New(&rest.Config{}, manager.Options{HealthProbeBindAddress: none, Metrics: metricsserver.Options{BindAddress: none}}); err != nil {
		t.Fatal(err)
	}
	reviewer := newReviewer(t, &source{})
	reviewer.definitions = d
	if err := r.serve(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.serving, nil }, r.reviews(reviewer)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.manager.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// dial connects from an address of the loopback network.
func (r *replica) dial(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.Dial("tcp", r.address.String())
}

// caller returns a client that connects from an address, as the API server does.
func (r *replica) caller(from string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots, ServerName: "webhook"},
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return r.dial(from) },
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// asked is a review of a pod that selects the definition shop/b.
var asked = fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","namespace":"shop","object":%s}}`,
	spec("b", `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"1"}}}]`))

// review asks for a review, which must be answered.
func (r *replica) review(c *http.Client) {
	r.t.Helper()
	resp, err := c.Post("https://webhook"+pathValidatePods, "application/json", strings.NewReader(asked))
	if err != nil {
		r.t.Error(err)
		return
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte(`"allowed":true`)) {
		r.t.Errorf("%s %s %v", resp.Status, answer, err)
	}
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

// head begins a review of n bytes.
func head(n int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", pathValidatePods, n)
}

// states are those that a client can keep a connection in. Their errors are those of a
// connection that the server has closed already.
var states = []func(raw net.Conn, c *tls.Conn){
	func(net.Conn, *tls.Conn) {},
	func(raw net.Conn, _ *tls.Conn) { _, _ = raw.Write([]byte("\x16\x03\x01\x02\x00")) }, // a handshake's beginning
	func(_ net.Conn, c *tls.Conn) { _ = c.Handshake() },
	func(_ net.Conn, c *tls.Conn) { _, _ = io.WriteString(c, head(10)[:40]) },
	func(_ net.Conn, c *tls.Conn) { _, _ = io.WriteString(c, head(2*len(asked))+asked) },
	func(_ net.Conn, c *tls.Conn) { // one request, and then none
		_, _ = io.WriteString(c, head(len(asked))+asked)
		_, _ = c.Read(make([]byte, 1))
	},
}

// occupy opens a connection, brings it into a state, and returns when the server has
// closed it or ctx ends.
func (r *replica) occupy(ctx context.Context, from string, state func(net.Conn, *tls.Conn)) {
	raw, err := r.dial(from)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	defer raw.Close()
	state(raw, tls.Client(raw, &tls.Config{RootCAs: r.roots, ServerName: "webhook"}))
	_, _ = io.Copy(io.Discard, raw)
}

// descriptors returns how many files this process has open.
func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// served returns how many goroutines serve a connection.
func served() int {
	stacks := make([]byte, 4<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("net/http.(*conn).serve("))
}

// TestFlood proves that one source which opens connections without end cannot keep
// another from its reviews, whether they are under way, come by the same connection or by
// a new one, and that everything that the flood took comes back.
func TestFlood(t *testing.T) {
	const share = 10
	g := &gate{asked: make(chan struct{}, 1), open: make(chan struct{})}
	r := newReplica(t, g, 2*share*bounds.Connection, share*bounds.Connection)
	if err := reachable(t.Context(), r.address); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection to end", func() bool { return served() == 0 })
	files := descriptors(t)

	slow, kept := r.caller("127.0.0.4"), r.caller("127.0.0.4")
	answered := make(chan struct{})
	go func() { defer close(answered); r.review(slow) }()
	<-g.asked

	ctx, leave := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var ended atomic.Int64
	for i := range 10 * share {
		for _, from := range []string{"127.0.0.2", "127.0.0.3"} { // each takes its share, both take all
			flood.Go(func() { defer ended.Add(1); r.occupy(ctx, from, states[i%len(states)]) })
		}
	}
	eventually(t, "the flood to be closed but for what it may have", func() bool { return ended.Load() >= 20*share-2*share })
	close(g.open)
	<-answered
	for range 20 {
		r.review(kept)
		anew := r.caller("127.0.0.4")
		r.review(anew)
		anew.CloseIdleConnections()
	}
	if r.closed.Load() == 0 {
		t.Error("the limiter counted no connection that it closed")
	}
	leave()
	flood.Wait()
	slow.CloseIdleConnections()
	kept.CloseIdleConnections()
	eventually(t, "goroutines and descriptors to come back", func() bool { return served() == 0 && descriptors(t) <= files })
}

// TestSlowClientsAreClosed proves that every state that a client can stay in has a limit.
func TestSlowClientsAreClosed(t *testing.T) {
	l := connlimit.New(bounds, func() { t.Error("the limiter closed a connection") })
	srv := newServer(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }), slog.New(slog.DiscardHandler))
	for _, limit := range []*time.Duration{&srv.ReadHeaderTimeout, &srv.ReadTimeout, &srv.WriteTimeout, &srv.IdleTimeout} {
		if *limit <= 0 {
			t.Fatal("a time is not limited")
		}
		*limit = 50 * time.Millisecond
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &material{}
	if _, err := m.next([]string{"webhook"}, lifetimes{ca: 30 * time.Hour, serving: 6 * time.Hour}, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = srv.Serve(tls.NewListener(l.Listener(raw), &tls.Config{Certificates: []tls.Certificate{*m.serving}}))
	}()
	defer srv.Close()
	r := &replica{t: t, roots: x509.NewCertPool(), server: &server{address: raw.Addr()}}
	r.roots.AppendCertsFromPEM(m.bundle())
	var all sync.WaitGroup
	for _, state := range states {
		all.Go(func() { r.occupy(t.Context(), "127.0.0.2", state) })
	}
	all.Wait() // the test's own limit is that of go test
}

// TestBodiesAreBounded proves that a source cannot make the webhook keep more bodies than
// its share, and that another source does not notice.
func TestBodiesAreBounded(t *testing.T) {
	const piece = 1 << 20
	r := newReplica(t, &source{}, 8*piece, 4*piece)
	var ended atomic.Int64
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 9 {
		all.Go(func() {
			defer ended.Add(1)
			r.occupy(ctx, "127.0.0.2", func(_ net.Conn, c *tls.Conn) {
				_, _ = io.WriteString(c, head(2*piece)+strings.Repeat(" ", piece)) // and no more
			})
		})
	}
	eventually(t, "bodies beyond the share to be cut off", func() bool { return ended.Load() >= 9-4 })
	r.review(r.caller("127.0.0.4"))
	leave()
	all.Wait()
}
