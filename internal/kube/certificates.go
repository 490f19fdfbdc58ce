package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"k8s.io/client-go/rest"
)

// Certificate is a certificate that the connection to the API server depends on.
type Certificate struct {
	Name     string // tells whose certificate it is
	NotAfter time.Time
}

// Certificates connects to the API server of a kubeconfig. It returns the server's
// certificate and, if there is one, the client's own. A certificate that does not
// verify is an error.
func Certificates(ctx context.Context, kubeconfig string) ([]Certificate, error) {
	cfg, err := Config(kubeconfig)
	if err != nil {
		return nil, err
	}
	conf, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("TLS configuration: %w", err)
	}
	out, err := clientCertificate(cfg)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(cfg.Host)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	if at.Scheme != "https" {
		conn, err := dialer.DialContext(ctx, "tcp", at.Host)
		if err != nil {
			return nil, err
		}
		return out, conn.Close()
	}
	host := at.Host
	if at.Port() == "" {
		host = net.JoinHostPort(at.Hostname(), "443")
	}
	conn, err := (&tls.Dialer{NetDialer: &dialer, Config: conf}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	if secure, ok := conn.(*tls.Conn); ok {
		for _, c := range secure.ConnectionState().PeerCertificates[:1] {
			out = append(out, Certificate{"that of the API server " + cfg.Host, c.NotAfter})
		}
	}
	return out, conn.Close()
}

// clientCertificate returns the certificate that the kubeconfig authenticates with, if
// there is one.
func clientCertificate(cfg *rest.Config) ([]Certificate, error) {
	raw := cfg.CertData
	if len(raw) == 0 && cfg.CertFile != "" {
		var err error
		if raw, err = os.ReadFile(cfg.CertFile); err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
	}
	if len(raw) == 0 {
		return nil, nil
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("client certificate: not PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	return []Certificate{{"the client's, of " + c.Subject.CommonName, c.NotAfter}}, nil
}
