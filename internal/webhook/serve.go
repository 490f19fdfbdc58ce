package webhook

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/manifold-cni/manifold/internal/connlimit"
)

// Limits of the HTTP servers. The API server gives up a review after 30 s at most and
// closes an idle connection after 90 s. It must come first in both, because it does not
// repeat a review that meets a closing connection.
const (
	headerTime = 10 * time.Second // for the TLS handshake, and again for the header
	answerTime = 35 * time.Second // for the whole request, and again for the response
	idleTime   = 2 * time.Minute  // between requests
	maxHeader  = 32 << 10         // bytes
	dialTime   = 10 * time.Second // for the server's connection to itself
)

// stopTime is how long requests in flight may take once the drain is over.
var stopTime = 30 * time.Second

// bounds limit the memory and the descriptors that clients can take. Every pod of the
// cluster can reach the webhook, and nobody authenticates before the request.
var bounds = connlimit.Bounds{
	Connection: 32 << 10, // roughly what TLS and net/http keep for an idle connection
	PerSource:  32 << 20, // fits a body of 7 MiB, the most that controller-runtime reads, several times
	Total:      64 << 20,
}

// newServer returns a server for connections that l has admitted.
func newServer(l *connlimit.Limiter, handler http.Handler, log *slog.Logger) *http.Server {
	srv := &http.Server{
		Handler: handler, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: headerTime, ReadTimeout: answerTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
	}
	l.ConfigureServer(srv)
	return srv
}

// listen adds a server for handler on address to the manager, over TLS unless config is
// nil, and returns the address that it listens on. The limiter is one for all ports.
func (s *server) listen(name, address string, config *tls.Config, handler http.Handler) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	l = s.limiter.Listener(l)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	srv := &manager.Server{Name: name, Server: newServer(s.limiter, handler, s.log), Listener: l, ShutdownTimeout: &stopTime}
	return l.Addr(), s.manager.Add(srv)
}

// probes returns the handler of /healthz and /readyz.
func (s *server) probes() http.Handler {
	mux := http.NewServeMux()
	for path, checks := range map[string]map[string]healthz.Checker{"/healthz": {"ping": healthz.Ping}, "/readyz": {"serving": s.ready}} {
		h := http.StripPrefix(path, &healthz.Handler{Checks: checks})
		mux.Handle(path, h)
		mux.Handle(path+"/", h)
	}
	return mux
}

// figures returns the handler of /metrics.
func figures() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(ctrlmetrics.Registry, promhttp.HandlerOpts{}))
	return mux
}

// reachable returns nil when the server of the reviews completes a TLS handshake.
func reachable(ctx context.Context, address net.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", address.String()) // it asks whether, not who
	if err != nil {
		return err
	}
	return conn.Close()
}
