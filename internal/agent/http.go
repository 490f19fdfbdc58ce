package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/connlimit"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Limits of the agent's HTTP servers.
const (
	headerTime = 5 * time.Second
	answerTime = 30 * time.Second
	idleTime   = 10 * time.Second
	maxHeader  = 32 << 10 // bytes
	// finishTime bounds the requests under way once the agent stops.
	finishTime = 5 * time.Second
)

// Bounds of the agent's listeners. Every pod that can reach one of them can open
// connections to it, so each address gets a share, and each listener has bounds of its
// own: what happens on one never closes connections of the other, not even of the
// kubelet on a node that also runs an API server.
//
// The kubelet uses two connections, one for each probe, and Prometheus one or two. API
// servers send people's questions to the view, which answers maxInspections of them at a
// time. A share is eight connections, and a listener's total 24. The host itself, which
// the kubelet's probes come from if the agent runs on the host's network, has its share
// beside the total.
//
// A connection takes up to 53 KiB while a request's header of maxHeader bytes arrives,
// and up to 86 KiB over TLS (resident memory, measured with 256 of them), rounded up
// here. Those of other hosts and pods together are 3.75 MiB, about what
// docs/performance.md leaves of the agent's budget of 32 MiB; answers that a client is
// slow to read come on top, some tens of KiB each. The 64 descriptors are few even where
// a process may have only 1,024.
const (
	shareConnections = 8
	maxConnections   = 24
	httpConnection   = 64 << 10 // bytes
	viewConnection   = 96 << 10
)

// ListenHTTP listens on a TCP address of the configuration.
func ListenHTTP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, cnierr.New("listen on "+address, cnierr.IO, "%w", err).WithFix("choose another address in the agent's configuration")
	}
	return l, nil
}

// ServeHTTP answers requests on l until ctx ends; then it closes l and lets the requests
// under way finish. It keeps the connections within bounds, and counts those that it
// closed or refused in m, which may be nil. The server's own messages go to log.
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler, m *metrics.Metrics, log *slog.Logger) error {
	return serve(ctx, l, nil, connections(httpConnection, metrics.ListenerHTTP, m), h, log)
}

// connections returns a limiter of one listener's connections, which count as size bytes
// each.
func connections(size int, listener string, m *metrics.Metrics) *connlimit.Limiter {
	b := connlimit.Bounds{Connection: size, PerSource: shareConnections * size, Total: maxConnections * size}
	return connlimit.New(b, func() { m.ConnectionClosed(listener) })
}

// serve is ServeHTTP within the bounds of limiter, over TLS unless config is nil.
func serve(ctx context.Context, l net.Listener, config *tls.Config, limiter *connlimit.Limiter, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: answerTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	limiter.ConfigureServer(srv)
	l = limiter.Listener(l)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTime)
		defer cancel()
		if err = srv.Shutdown(finish); err != nil {
			err = errors.Join(err, srv.Close())
		}
		<-ended
	}
	if err != nil {
		return cnierr.New("serve HTTP on "+l.Addr().String(), cnierr.IO, "%w", err)
	}
	return nil
}

// Public returns the handler that anybody may ask: /healthz, /readyz, and /metrics with
// the metrics of the sources.
func (a *Assembly) Public(c *configfile.Agent) http.Handler {
	m := a.Sources.Metrics
	m.Ready(func() map[string]error { return a.ready(context.Background()) })
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		healthz(w, r, plan.Client{Socket: c.Socket}, a.Sources.calls)
	})
	mux.HandleFunc("GET /readyz", a.readyz)
	return mux
}

// healthTime bounds the call that healthz makes to the agent's own socket, and the
// checks.
const healthTime = 5 * time.Second

// healthz says whether the process must be restarted: its socket must accept a call and
// answer it, and no call may hang. A missing or slow source does not count, because a
// restart does not mend it.
func healthz(w http.ResponseWriter, r *http.Request, self plan.Client, under *calls) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTime)
	defer cancel()
	err := self.Ping(ctx)
	if err == nil {
		err = under.hung()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// readyz says whether plans can be made, with one line for each check.
func (a *Assembly) readyz(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	status := http.StatusOK
	results := a.ready(r.Context())
	for _, c := range a.Checks {
		if err := results[c.Name]; err != nil {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&body, "failed %s: %s\n", c.Name, oneLine(err))
		} else {
			fmt.Fprintf(&body, "ok %s\n", c.Name)
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the caller may be gone
}

// oneLine renders an error without line breaks.
func oneLine(err error) string {
	return string(bytes.ReplaceAll([]byte(err.Error()), []byte("\n"), []byte("; ")))
}

// ready runs the checks and returns their results by name.
func (a *Assembly) ready(ctx context.Context) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	out := map[string]error{}
	for _, c := range a.Checks {
		out[c.Name] = c.Ready(ctx)
	}
	return out
}
