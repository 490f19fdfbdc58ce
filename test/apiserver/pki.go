package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// guestsHost is the host's loopback in QEMU's user network.
var guestsHost = net.IPv4(10, 0, 2, 2)

// pki holds the certificate authority of one server.
type pki struct {
	caPEM []byte
	pool  *x509.CertPool
}

// newPKI writes to dir the API server's certificate and key (api.crt, api.key), the
// certificate that signed it (ca.crt), and the key pair of service account tokens
// (sa.key, sa.pub).
func newPKI(dir string) (*pki, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := template("manifold-test-ca")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := template("kube-apiserver")
	cert.IPAddresses, cert.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1), guestsHost}, []string{"localhost", "kubernetes.default.svc"}
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	certDER, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	p := &pki{caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), pool: x509.NewCertPool()}
	p.pool.AppendCertsFromPEM(p.caPEM)
	return p, errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.crt"), p.caPEM, 0o600),
		write(dir, "api.crt", "CERTIFICATE", certDER, nil), writeKey(dir, "api.key", key), writeKey(dir, "sa.key", sa), writePublic(dir, "sa.pub", sa.Public()),
	)
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func writeKey(dir, name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return write(dir, name, "PRIVATE KEY", der, err)
}

func writePublic(dir, name string, key any) error {
	der, err := x509.MarshalPKIXPublicKey(key)
	return write(dir, name, "PUBLIC KEY", der, err)
}

func write(dir, name, kind string, der []byte, err error) error {
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
