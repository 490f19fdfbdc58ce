package agent

import (
	"bytes"
	"context"
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
	t.Cleanup(r.start(func(ctx context.Context) error { return ServeHTTP(ctx, web, handler, slog.New(slog.DiscardHandler)) }))
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
		}), slog.New(slog.DiscardHandler))
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

// Strangers can open a bounded number of connections to the view. Further ones wait
// until one is closed.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := ListenView("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	for range maxConnections + 1 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	held := <-accepted
	for range maxConnections - 1 {
		defer (<-accepted).Close()
	}
	select {
	case <-accepted:
		t.Fatal("one too many is accepted")
	case <-time.After(100 * time.Millisecond): // still waiting; a slow machine waits longer, never shorter
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	_ = (<-accepted).Close() // only that it comes matters
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
		served <- ServeTLS(ctx, l, "node1", http.NotFoundHandler(), logs.New(w, logs.JSON, slog.LevelInfo))
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
