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

// connKey is the key of a request's *conn in its context.
type connKey struct{}

// server returns an HTTP server for connections that l has admitted.
func (l *limiter) server(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Body != http.NoBody {
				r.Body = body{r.Body, r.Context().Value(connKey{}).(*conn)}
			}
			handler.ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		},
		ConnState: l.state,
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelWarn),

		ReadHeaderTimeout: headerTime, ReadTimeout: answerTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
	}
}

// listen adds a server for handler on address to the manager, over TLS unless config is
// nil, and returns the address that it listens on. The limiter is one for all ports.
func (s *server) listen(name, address string, config *tls.Config, handler http.Handler) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	l = limitedListener{l, s.limiter}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	srv := &manager.Server{Name: name, Server: s.limiter.server(handler, s.log), Listener: l, ShutdownTimeout: &stopTime}
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
