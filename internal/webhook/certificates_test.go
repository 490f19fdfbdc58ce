package webhook

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"
)

// TestEveryCertificateIsTrusted rotates for 800 hours, over two lifetimes of an
// authority, and proves that the certificate of a replica one check behind verifies
// against the bundle of an API server one settle time behind.
func TestEveryCertificateIsTrusted(t *testing.T) {
	const interval, settle = time.Hour, 5 * time.Hour
	names, life := []string{"webhook.ns.svc"}, lifetimes{ca: 300 * time.Hour, serving: 60 * time.Hour}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	data := map[string][]byte{}
	var history [][]byte // bundles, one per step
	var served []*x509.Certificate
	var newest []byte
	var since time.Time
	authorities, certificates := map[string]bool{}, map[string]bool{}
	for range 800 {
		m := readMaterial(data)
		trusted := len(m.cas) > 0 && string(m.cas[0].Raw) == string(newest) && now.Sub(since) >= settle
		changed, err := m.next(names, life, now, trusted)
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			if data, err = m.data(); err != nil {
				t.Fatal(err)
			}
		}
		if string(m.cas[0].Raw) != string(newest) {
			newest, since = m.cas[0].Raw, now
		}
		history, served = append(history, m.bundle()), append(served, m.serving.Leaf)
		authorities[string(m.cas[0].Raw)], certificates[string(m.serving.Leaf.Raw)] = true, true
		for _, bundle := range history[max(0, len(history)-int(settle/interval)):] {
			for _, leaf := range served[max(0, len(served)-2):] {
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(bundle)
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: names[0], CurrentTime: now}); err != nil {
					t.Fatalf("after %s: %v", now, err)
				}
			}
		}
		now = now.Add(interval)
	}
	if len(authorities) < 3 || len(certificates) < 15 {
		t.Errorf("%d authorities, %d certificates: nothing was rotated", len(authorities), len(certificates))
	}
}

func TestDamagedCertificatesAreMadeAnew(t *testing.T) {
	names, life, now := []string{"webhook.ns.svc"}, lifetimes{ca: 30 * time.Hour, serving: 6 * time.Hour}, time.Now()
	whole := &material{}
	if _, err := whole.next(names, life, now, false); err != nil {
		t.Fatal(err)
	}
	data, err := whole.data()
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := readMaterial(data).next(names, life, now, true); err != nil || changed {
		t.Errorf("what is whole is made anew: %v", err)
	}
	for _, damaged := range []string{keyCAs, keyCAKey, keyServing, keyPrivate} {
		for _, with := range [][]byte{nil, []byte("x"), data[keyCAs][:len(data[keyCAs])/2]} {
			broken := map[string][]byte{}
			for k, v := range data {
				broken[k] = slices.Clone(v)
			}
			broken[damaged] = with
			m := readMaterial(broken)
			if changed, err := m.next(names, life, now, true); err != nil || !changed || !m.usable(names, now) || m.caKey == nil {
				t.Errorf("%s damaged: changed %t, %v", damaged, changed, err)
			}
		}
	}
	if changed, err := whole.next([]string{"another.ns.svc"}, life, now, false); err != nil || !changed || !whole.usable([]string{"another.ns.svc"}, now) {
		t.Errorf("another name: changed %t, %v", changed, err)
	}
}

func TestOptionsThatCannotBeKept(t *testing.T) {
	good := Options{
		Namespace: "n", Secret: "s", Service: "s", Configuration: "c", CALifetime: 9 * time.Hour, CertLifetime: 3 * time.Hour,
		Settle: time.Minute, Interval: time.Second,
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Options){
		"no namespace": func(o *Options) { o.Namespace = "" }, "no interval": func(o *Options) { o.Interval = 0 },
		"outlives its authority": func(o *Options) { o.CertLifetime = 4 * time.Hour }, "settles too long": func(o *Options) { o.Settle = 2 * time.Hour },
	} {
		bad := good
		spoil(&bad)
		if bad.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (&Options{CertDir: "/certs"}).check(); err != nil {
		t.Error(err)
	}
}
