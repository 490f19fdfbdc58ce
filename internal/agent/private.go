package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
)

// maxInspections is how many questions are answered at once: each reads sysfs and
// asks the kubelet.
const maxInspections = 4

// access decides who may ask; *kube.Access is the real one.
type access interface {
	Allowed(ctx context.Context, token, path string) error
}

// private answers the questions of people, over TLS, to those whom the API server
// lets get the path:
//
//	GET /manifold/v1/node                  the node's view
//	GET /manifold/v1/pods/NAMESPACE/NAME   the explanation of a pod
//
// The token stands in the header kube.TokenHeader, since the API server's proxy,
// by which the request comes, drops Authorization.
type private struct {
	inspector plan.Inspector
	access    access
	log       *slog.Logger
	slots     chan struct{}
}

// newPrivate returns the handler.
func newPrivate(i plan.Inspector, a access, log *slog.Logger) http.Handler {
	p := &private{inspector: i, access: a, log: log, slots: make(chan struct{}, maxInspections)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /manifold/v1/node", p.answer(func(*http.Request) plan.Question { return plan.Question{About: plan.AboutNode} }))
	mux.HandleFunc("GET /manifold/v1/pods/{namespace}/{name}", p.answer(func(r *http.Request) plan.Question {
		return plan.Question{About: plan.AboutPod, Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
	}))
	return mux
}

// answer lets those in who may ask, and answers.
func (p *private) answer(question func(*http.Request) plan.Question) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTime)
		defer cancel()
		if err := p.access.Allowed(ctx, r.Header.Get(kube.TokenHeader), r.URL.Path); err != nil {
			p.log.Warn("not answered", "from", r.RemoteAddr, "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-ctx.Done():
			http.Error(w, "too many questions are being answered", http.StatusServiceUnavailable)
			return
		}
		raw, err := p.inspector.Inspect(ctx, question(r))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(raw) // who asked may be gone
	}
}

// statusOf is the HTTP status of a refusal.
func statusOf(err error) int {
	switch {
	case errors.Is(err, kube.ErrUnauthenticated):
		return http.StatusUnauthorized
	case errors.Is(err, kube.ErrForbidden):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}

// certLife is how long the agent's certificate is good for: longer than any
// process lives.
const certLife = 10 * 365 * 24 * time.Hour

// ServeTLS is ServeHTTP over TLS, with a certificate that this process makes for
// itself: the API server's proxy, by which requests come, verifies none. So a
// caller trusts the API server to reach the right pod, and sends a token that is
// of no use to another one, see kube.Audience.
func ServeTLS(ctx context.Context, l net.Listener, node string, h http.Handler) error {
	const op = "make certificate"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cnierr.New(op, cnierr.Other, "%w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: node}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return cnierr.New(op, cnierr.Other, "%w", err)
	}
	return ServeHTTP(ctx, tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos: []string{"http/1.1"},
	}), h)
}

// Private returns the handler of what people ask through the API server. Without
// one there is nobody to say who may ask.
func (a *Assembly) Private(c *Config, i plan.Inspector, log *slog.Logger) (http.Handler, error) {
	if a.client == nil {
		return nil, cnierr.New("serve the node's view", cnierr.InvalidConfig, "the key view needs apiServer, which says who may ask").
			WithFix("set apiServer, or take view away")
	}
	return newPrivate(i, kube.NewAccess(a.client, kube.Audience(c.Node)), log), nil
}
