package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// running is an agent that serves its socket and HTTP, on a node with a kubelet.
type running struct {
	*node
	kubelet *fakekubelet.Kubelet
	url     string
	socket  func() // stops serving the socket alone
}

// runNode starts an agent whose default network is cl, on a node to which changes are
// applied first.
func runNode(t *testing.T, changes ...func(*running)) *running {
	t.Helper()
	r := &running{node: newNode(t, "cl")}
	// Not in the test's own directory: the path can be too long for a socket.
	dir, err := os.MkdirTemp("", "agent-")
	r.Must(err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r.kubelet, err = fakekubelet.Start(filepath.Join(dir, "kubelet"))
	r.Must(err)
	t.Cleanup(r.kubelet.Stop)
	r.File("00-manifold.conflist", fmt.Sprintf(
		`{"cniVersion":"1.1.0","name":"manifold","plugins":[{"type":"manifold","clusterNetwork":"cl","confDir":%q}]}`, r.Path("net.d")))
	r.conf.PodManifests, r.conf.Reconcile = "", configfile.ReconcileOff
	r.conf.Socket, r.conf.KubeletDir, r.conf.CNIConfig = filepath.Join(dir, "agent.sock"), r.kubelet.Dir(), r.Path("00-manifold.conflist")
	r.conf.Listen, r.conf.Release = "127.0.0.1:0", "v1"
	for _, change := range changes {
		change(r)
	}
	r.Must(r.conf.Complete())
	a, err := Assemble(&r.conf, false, slog.New(slog.DiscardHandler))
	r.Must(err)
	l, err := plan.Listen(dir, r.conf.Socket)
	r.Must(err)
	web, err := ListenHTTP(r.conf.Listen)
	r.Must(err)
	r.url = "http://" + web.Addr().String()
	stop := r.start(func(ctx context.Context) error { a.Run(ctx); return a.Close() })
	t.Cleanup(stop)
	r.socket = r.start(func(ctx context.Context) error {
		return plan.Serve(ctx, l, New(a.Sources, slog.New(slog.DiscardHandler), nil))
	})
	t.Cleanup(r.socket)
	handler := a.Public(&r.conf)
	t.Cleanup(r.start(func(ctx context.Context) error {
		return ServeHTTP(ctx, web, handler, a.Sources.Metrics, slog.New(slog.DiscardHandler))
	}))
	return r
}

// start runs f until stop is called, which may be called again.
func (n *node) start(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			n.T.Error(err)
		}
	}()
	return func() { cancel(); <-done }
}

func (r *running) get(path string) (status int, body string) {
	r.T.Helper()
	resp, err := http.Get(r.url + path)
	r.Must(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	r.Must(err)
	return resp.StatusCode, string(raw)
}

// await repeats a request for a path until the answer is as wanted.
func (r *running) await(path string, status int, part string) {
	r.T.Helper()
	var got int
	var body string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got, body = r.get(path); got == status && strings.Contains(body, part) {
			return
		}
	}
	r.T.Fatalf("GET %s: %d %s; want %d with %q", path, got, body, status, part)
}

// Readiness names what is missing. None of it makes the process unhealthy.
func TestReadiness(t *testing.T) {
	r := runNode(t)
	const all = "ok pods\nok definitions\nok kubelet\nok default network\n"
	r.await("/readyz", http.StatusOK, all)

	for name, tc := range map[string]struct {
		out, in func() error
		want    string
	}{
		"default network": {
			func() error { return os.Rename(r.Path("net.d/cl.conflist"), r.Path("cl")) },
			func() error { return os.Rename(r.Path("cl"), r.Path("net.d/cl.conflist")) },
			"failed default network: network cl: find cluster default network: ",
		},
		"plugin's configuration": {
			func() error { return os.Rename(r.conf.CNIConfig, r.Path("away")) },
			func() error { return os.Rename(r.Path("away"), r.conf.CNIConfig) },
			"failed default network: open " + r.conf.CNIConfig,
		},
		"kubelet": {
			func() error { return r.kubelet.SetPhase(fakekubelet.Down) },
			func() error { return r.kubelet.SetPhase(fakekubelet.Normal) },
			"failed kubelet: ",
		},
		"kubelet's pods": {
			func() error { return r.kubelet.SetPhase(fakekubelet.Down) },
			func() error { return r.kubelet.SetPhase(fakekubelet.Normal) },
			"failed pods: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r.Must(tc.out())
			r.await("/readyz", http.StatusServiceUnavailable, tc.want)
			if status, body := r.get("/healthz"); status != http.StatusOK {
				t.Errorf("unhealthy: %s", body)
			}
			r.Must(tc.in())
			r.await("/readyz", http.StatusOK, all)
		})
	}
	t.Run("default network by definition", func(t *testing.T) {
		r.Must(os.Remove(r.Path("net.d/cl.conflist")))
		r.await("/readyz", http.StatusServiceUnavailable, "failed default network")
		r.define("cl", config("cl", "from-definition"))
		r.await("/readyz", http.StatusOK, all)
	})
}

// With the permissions for kubelets that have a Pods API, on a node whose kubelet has
// none, the agent asks for each pod. It is ready, and nothing that it knows is old.
func TestReadyWherePodsMayNotBeFollowed(t *testing.T) {
	r := runNode(t, func(r *running) {
		r.conf.PodsAPI = r.Path("none")
		r.api.ForbidFollowing("pods")
	})
	r.await("/readyz", http.StatusOK, "ok pods\n")
	r.await("/metrics", http.StatusOK, `manifold_source_failing_seconds{source="pods"} 0`)
	r.api.AddPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}})
	req := r.request("cl")
	req.PodNamespace, req.PodName, req.PodUID = "shop", "web", "u1"
	if p, err := (plan.Client{Socket: r.conf.Socket}).Plan(t.Context(), req); err != nil || p.Pod.Name != "web" {
		t.Errorf("%+v, %v", p, err)
	}
}

// A process whose socket nobody serves is unhealthy, whatever its sources say.
func TestHealth(t *testing.T) {
	r := runNode(t)
	r.await("/healthz", http.StatusOK, "ok")
	r.await("/readyz", http.StatusOK, "")
	r.socket()
	r.await("/healthz", http.StatusServiceUnavailable, r.conf.Socket)
	if status, body := r.get("/readyz"); status != http.StatusOK {
		t.Errorf("not ready: %s", body)
	}
}

func TestExposition(t *testing.T) {
	r := runNode(t)
	r.await("/metrics", http.StatusOK, `manifold_ready{check="pods"} 1`)
	_, body := r.get("/metrics")
	for _, line := range []string{`manifold_build_info{release="v1"} 1`, `manifold_ready{check="definitions"} `, "go_memstats_heap_alloc_bytes ", "process_resident_memory_bytes "} {
		if !strings.Contains(body, "\n"+line) {
			t.Errorf("no line begins with %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// A request under way is answered after the agent was told to stop.
func TestServeHTTPEnds(t *testing.T) {
	l, err := ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived, ended := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- ServeHTTP(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(arrived)
			<-ended
			fmt.Fprint(w, "late")
		}), nil, slog.New(slog.DiscardHandler))
	}()
	go func() { <-arrived; cancel(); awaitRefusal(l.Addr().String()); close(ended) }()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "late" {
		t.Errorf("%s, %v", body, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := ListenHTTP("127.0.0.1:none"); err == nil || !strings.Contains(err.Error(), "choose another address") {
		t.Errorf("%v", err)
	}
}

// awaitRefusal waits until nobody listens at address any more.
func awaitRefusal(address string) {
	for {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		_ = conn.Close() // nothing was sent
	}
}

// served is one of the agent's listeners, served within its bounds.
type served struct {
	t       *testing.T
	address string
	secure  bool // over TLS
	metrics *metrics.Metrics
	name    string // of the listener in the metrics
}

// serveBounded serves h on one of the agent's listeners until the test ends.
func serveBounded(t *testing.T, name string, h http.Handler) *served {
	t.Helper()
	l, err := ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, address: l.Addr().String(), secure: name == metrics.ListenerView, metrics: metrics.New("v1"), name: name}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		log := slog.New(slog.DiscardHandler)
		if s.secure {
			done <- ServeView(ctx, l, "node1", h, s.metrics, log)
		} else {
			done <- ServeHTTP(ctx, l, h, s.metrics, log)
		}
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial connects from an address of the loopback network.
func (s *served) dial(from string) net.Conn {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// over returns what requests are written to: c, or TLS over it.
func (s *served) over(c net.Conn) net.Conn {
	if s.secure {
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return c
}

// answer sends a GET request over c and returns the answer's body.
func answer(c net.Conn, path string) (string, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// closed returns how many connections the metrics say were closed or refused.
func (s *served) closed() (n int) {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	_, line, _ := strings.Cut(w.Body.String(), fmt.Sprintf("\nmanifold_connections_closed_total{listener=%q} ", s.name))
	if _, err := fmt.Sscan(line, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// slowly returns a handler that answers "ok", and the path /slow only when open is
// closed or the test ends. asked receives once for each request of /slow.
func slowly(t *testing.T, asked chan<- struct{}, open <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked <- struct{}{}
			select {
			case <-open:
			case <-t.Context().Done():
			}
		}
		fmt.Fprint(w, "ok")
	})
}

// TestFlood proves, on each of the agent's listeners, that a source which opens
// connections without end is kept to its share: its idle connections are closed, its
// request in progress is answered, and another source is answered meanwhile, over the
// connection that it has and over new ones.
func TestFlood(t *testing.T) {
	for _, name := range []string{metrics.ListenerHTTP, metrics.ListenerView} {
		t.Run(name, func(t *testing.T) {
			asked, open := make(chan struct{}), make(chan struct{})
			flood(t, serveBounded(t, name, slowly(t, asked, open)), asked, open)
		})
	}
}

// flood is TestFlood for a listener whose handler is one of slowly.
func flood(t *testing.T, s *served, asked <-chan struct{}, open chan<- struct{}) {
	answered := func(what string, c net.Conn, path string) {
		if body, err := answer(c, path); err != nil || body != "ok" {
			t.Errorf("%s: %q, %v", what, body, err)
		}
	}
	busy, slow := s.over(s.dial("127.0.0.2")), make(chan struct{})
	go func() { defer close(slow); answered("the flood's request in progress", busy, "/slow") }()
	<-asked
	kept := s.over(s.dial("127.0.0.3"))
	answered("before the flood", kept, "/")
	const size = 400 // more than may be open in all
	for range size {
		s.dial("127.0.0.2")
	}
	for range 3 {
		answered("another source, kept connection", kept, "/")
		answered("another source, new connection", s.over(s.dial("127.0.0.3")), "/")
	}
	const want = size + 1 - shareConnections
	for end := time.Now().Add(time.Minute); s.closed() < want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if n := s.closed(); n != want {
		t.Errorf("%d connections are closed, want %d", n, want)
	}
	close(open)
	<-slow
}

// TestHostIsNotKeptOut proves, on each of the agent's listeners, that the host itself is
// answered while requests of pods, which are never closed, take every connection that
// there is for pods, and that nobody else is.
func TestHostIsNotKeptOut(t *testing.T) {
	for _, name := range []string{metrics.ListenerHTTP, metrics.ListenerView} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{})
			s := serveBounded(t, name, slowly(t, asked, nil))
			for i := range maxConnections {
				c := s.over(s.dial(fmt.Sprintf("127.0.1.%d", i/shareConnections)))
				go func() { _, _ = answer(c, "/slow") }() // until the test ends
				<-asked
			}
			if body, err := answer(s.over(s.dial("127.0.0.1")), "/"); err != nil || body != "ok" {
				t.Errorf("the host: %q, %v", body, err)
			}
			if body, err := answer(s.over(s.dial("127.0.0.2")), "/"); err == nil {
				t.Errorf("one pod too many: %q", body)
			}
			if n := s.closed(); n != 1 {
				t.Errorf("%d connections are closed", n)
			}
		})
	}
}

// TestProbeDuringFlood proves that pods which take all connections that there are for
// pods, partly with requests, do not keep the host from /healthz.
func TestProbeDuringFlood(t *testing.T) {
	r := runNode(t)
	s := &served{t: t, address: strings.TrimPrefix(r.url, "http://")}
	for i := range 300 {
		for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
			c := s.dial(from)
			if i%3 == 0 { // it may be closed already
				_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
			}
		}
		if i%30 == 0 {
			if status, body := r.get("/healthz"); status != http.StatusOK {
				t.Errorf("%d %s", status, body)
			}
			http.DefaultClient.CloseIdleConnections() // the kubelet's probes come over new connections
		}
	}
}

// The server's message about a caller that speaks no TLS becomes an ordinary line of
// the log.
func TestCallersWithoutTLSAreLogged(t *testing.T) {
	l, err := ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lines, w := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- ServeView(ctx, l, "node1", http.NotFoundHandler(), nil, logs.New(w, logs.JSON, slog.LevelInfo))
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var line struct{ Level, Msg string }
	if err := json.NewDecoder(lines).Decode(&line); err != nil || line.Level != "WARN" || !strings.Contains(line.Msg, "TLS handshake error") {
		t.Errorf("%+v, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // further lines
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// The plugin's reports reach the configured collector before the agent has ended.
func TestReportsAreTraced(t *testing.T) {
	const request = "0123456789abcdef0123456789abcdef"
	got := make(chan []byte, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- body
	}))
	defer collector.Close()
	n := newNode(t)
	n.conf.Traces = collector.URL
	log := slog.New(slog.DiscardHandler)
	a, err := Assemble(&n.conf, false, log)
	n.Must(err)
	n.Must(a.Trace(t.Context(), &n.conf, log))
	n.Must(New(a.Sources, log, nil).Report(t.Context(), plan.Report{
		Verb: "DEL", Plan: &plan.Plan{Attachments: []plan.Attachment{{}}}, Operation: &plan.Operation{Verb: "DEL", Request: request},
	}))
	n.Must(a.Close())
	id, err := hex.DecodeString(request)
	n.Must(err)
	if body := <-got; !bytes.Contains(body, id) {
		t.Errorf("%x", body)
	}
	n.conf.Traces = "collector:4318"
	if err := a.Trace(t.Context(), &n.conf, log); !cnierr.Is(err, cnierr.InvalidConfig) || !strings.Contains(err.Error(), "traces") {
		t.Errorf("%v", err)
	}
}
