package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

// maxInspections is how many questions are answered at once: each reads sysfs and asks
// the kubelet.
const maxInspections = 4

// access decides who may ask. The implementation is *kube.Access.
type access interface {
	Allowed(ctx context.Context, token, path string) error
}

// private answers the questions of people, over TLS, for those whom the API server
// allows to get the path:
//
//	GET /manifold/v1/node                  the node's view
//	GET /manifold/v1/pods/NAMESPACE/NAME   the explanation of a pod
//	GET /manifold/v1/doctor                what is broken on the node
//	GET /manifold/v1/bundle                an archive of all of it, without secrets
//
// The token is in the header kube.TokenHeader, because requests come through the API
// server's proxy, which drops Authorization.
type private struct {
	inspector plan.Inspector
	examiner  Examiner
	access    access
	log       *slog.Logger
	slots     chan struct{}
}

// Examiner examines the node through its files, as a person logged in on the node
// would.
type Examiner interface {
	// Diagnose tells what is broken.
	Diagnose(ctx context.Context) *nodeview.Diagnosis
	// Bundle writes a gzipped tar archive of what is known of the node. release is that
	// of the program that writes it.
	Bundle(ctx context.Context, release string, w io.Writer) error
}

// question makes the answer to a request.
type question func(*http.Request) (contentType string, body []byte, err error)

// newPrivate returns the handler. release is this program's.
func newPrivate(i plan.Inspector, e Examiner, a access, release string, log *slog.Logger) http.Handler {
	p := &private{inspector: i, examiner: e, access: a, log: log, slots: make(chan struct{}, maxInspections)}
	mux := http.NewServeMux()
	for path, ask := range map[string]question{
		"node": p.inspect(func(*http.Request) plan.Question { return plan.Question{About: plan.AboutNode} }),
		"pods/{namespace}/{name}": p.inspect(func(r *http.Request) plan.Question {
			return plan.Question{About: plan.AboutPod, Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
		}),
		"doctor": func(r *http.Request) (string, []byte, error) {
			raw, err := json.Marshal(p.examiner.Diagnose(r.Context()))
			return "application/json", raw, err
		},
		"bundle": func(r *http.Request) (string, []byte, error) {
			var archive bytes.Buffer
			err := p.examiner.Bundle(r.Context(), release, &archive)
			return "application/gzip", archive.Bytes(), err
		},
	} {
		mux.HandleFunc("GET /manifold/v1/"+path, p.answer(ask))
	}
	return mux
}

// inspect answers with the inspector's answer to a question.
func (p *private) inspect(about func(*http.Request) plan.Question) question {
	return func(r *http.Request) (string, []byte, error) {
		raw, err := p.inspector.Inspect(r.Context(), about(r))
		return "application/json", raw, err
	}
}

// answer checks that the caller may ask, and answers.
func (p *private) answer(ask question) http.HandlerFunc {
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
		contentType, body, err := ask(r.WithContext(ctx))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body) // the caller may be gone
	}
}

// statusOf returns the HTTP status of a refusal.
func statusOf(err error) int {
	switch {
	case errors.Is(err, kube.ErrUnauthenticated):
		return http.StatusUnauthorized
	case errors.Is(err, kube.ErrForbidden):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}

// certLife is how long the agent's certificate is valid: longer than any process lives.
const certLife = 10 * 365 * 24 * time.Hour

// ServeView is ServeHTTP for the node's view: over TLS, with a certificate that this
// process makes for itself and for node's name. The API server's proxy, through which
// requests come, verifies none. A caller therefore trusts the API server to reach the
// right pod, and sends a token that is useless to another pod, see kube.Audience.
func ServeView(ctx context.Context, l net.Listener, node string, h http.Handler, m *metrics.Metrics, log *slog.Logger) error {
	const op = "create certificate"
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
	return serve(ctx, l, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos: []string{"http/1.1"},
	}, connections(viewConnection, metrics.ListenerView, m), h, log)
}

// Private returns the handler of the questions that people ask through the API server.
// It needs the API server, which decides who may ask.
func (a *Assembly) Private(c *configfile.Agent, i plan.Inspector, e Examiner, log *slog.Logger) (http.Handler, error) {
	if a.client == nil {
		return nil, cnierr.New("serve the node's view", cnierr.InvalidConfig, "the key view needs apiServer, which decides who may ask").
			WithFix("set apiServer or remove view")
	}
	return newPrivate(i, e, kube.NewAccess(a.client, kube.Audience(c.Node)), c.Release, log), nil
}
