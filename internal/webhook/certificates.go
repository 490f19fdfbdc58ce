package webhook

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Keys in the Secret that holds the certificates.
const (
	keyCAs     = "ca.crt" // all trusted authorities, newest first
	keyCAKey   = "ca.key" // of the newest authority
	keyServing = "tls.crt"
	keyPrivate = "tls.key"
)

// skew is how far the API server's clock may lag behind: certificates are valid from
// that long before they are issued.
const skew = time.Hour

// material is the content of the Secret: the authorities, of which the newest signs,
// and the serving certificate. Parts that cannot be used are nil.
type material struct {
	cas     []*x509.Certificate
	caKey   crypto.Signer
	serving *tls.Certificate // with Leaf set
}

// readMaterial decodes the data of a Secret. It skips damaged parts: the next step
// replaces them.
func readMaterial(data map[string][]byte) *material {
	m := &material{}
	for rest := data[keyCAs]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil && ca.IsCA {
			m.cas = append(m.cas, ca)
		}
	}
	if pair, err := tls.X509KeyPair(data[keyCAs], data[keyCAKey]); err == nil { // the key of cas[0]
		m.caKey, _ = pair.PrivateKey.(crypto.Signer)
	}
	if pair, err := tls.X509KeyPair(data[keyServing], data[keyPrivate]); err == nil {
		m.serving = &pair
	}
	return m
}

// data encodes the material for the Secret.
func (m *material) data() (map[string][]byte, error) {
	caKey, err := keyPEM(m.caKey)
	if err != nil {
		return nil, err
	}
	key, err := keyPEM(m.serving.PrivateKey)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		keyCAs: m.bundle(), keyCAKey: caKey, keyServing: certificatePEM(m.serving.Leaf), keyPrivate: key,
	}, nil
}

// bundle returns the authorities in PEM, for the caBundle of the webhook
// configurations.
func (m *material) bundle() []byte {
	var out []byte
	for _, ca := range m.cas {
		out = append(out, certificatePEM(ca)...)
	}
	return out
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// usable reports whether the serving certificate is valid at now: one of the
// authorities signed it for all the names, and it has not expired.
func (m *material) usable(names []string, now time.Time) bool {
	if m.serving == nil || m.serving.Leaf == nil {
		return false
	}
	pool := x509.NewCertPool()
	for _, ca := range m.cas {
		pool.AddCert(ca)
	}
	for _, name := range names {
		if _, err := m.serving.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: now}); err != nil {
			return false
		}
	}
	return true
}

// lifetimes say how long certificates are valid. A certificate is replaced when a
// third of its lifetime is left.
type lifetimes struct{ ca, serving time.Duration }

// next does the rotation step that is due at now, and reports whether the material
// changed. A new authority is published before it signs, and an old authority is
// dropped only once it has expired. So any certificate that a replica may still serve
// with verifies against any bundle that an API server may still trust.
//
// trusted tells whether every API server has had the newest authority for long enough.
// If no usable certificate exists, next does not wait for that.
func (m *material) next(names []string, life lifetimes, now time.Time, trusted bool) (changed bool, err error) {
	before := len(m.cas)
	m.cas = slices.DeleteFunc(m.cas, func(ca *x509.Certificate) bool { return !now.Before(ca.NotAfter) })
	changed = len(m.cas) != before
	usable := m.usable(names, now)
	if m.caKey == nil || len(m.cas) == 0 || m.cas[0].NotAfter.Sub(now) < life.ca/3 {
		if err := m.newCA(now, life.ca); err != nil {
			return false, err
		}
		changed, trusted = true, false
	}
	due := !usable || m.serving.Leaf.NotAfter.Sub(now) < life.serving/3 || m.serving.Leaf.CheckSignatureFrom(m.cas[0]) != nil
	if !due || usable && !trusted {
		return changed, nil
	}
	return true, m.newServing(names, now, life.serving)
}

// newCA creates an authority and puts it first.
func (m *material) newCA(now time.Time, life time.Duration) error {
	key, template, err := newKey(now, life)
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{CommonName: "manifold-webhook " + now.UTC().Format(time.RFC3339)}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	ca, err := sign(template, template, key, key)
	if err != nil {
		return err
	}
	m.cas, m.caKey = append([]*x509.Certificate{ca}, m.cas...), key
	return nil
}

// newServing creates the serving certificate. The newest authority signs it, and it
// does not outlive that authority.
func (m *material) newServing(names []string, now time.Time, life time.Duration) error {
	ca := m.cas[0]
	key, template, err := newKey(now, min(life, ca.NotAfter.Sub(now)))
	if err != nil {
		return err
	}
	template.Subject, template.DNSNames = pkix.Name{CommonName: names[0]}, names
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf, err := sign(template, ca, key, m.caKey)
	if err != nil {
		return err
	}
	m.serving = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return nil
}

// newKey creates a key and a certificate template that is valid for life from now.
func newKey(now time.Time, life time.Duration) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("generate serial number: %w", err)
	}
	return key, &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-skew), NotAfter: now.Add(life)}, nil
}

// sign creates a certificate for the public half of key from a template, signed by
// signer in the name of parent.
func sign(template, parent *x509.Certificate, key, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
