package journal

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// quarantine returns a quarantine of the device vf.
func quarantine() Quarantine {
	return Quarantine{
		Device: vf, Reason: "trust of the VF: wanted off, found on", Sandbox: "a@eth0",
		Pod: plan.Pod{Namespace: "shop", Name: "web", UID: "1"}, Network: "shop/fast", To: json.RawMessage(`{"driver":"igbvf"}`),
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestQuarantine(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	in := func() *Quarantine {
		t.Helper()
		q, err := d.Quarantined(vf)
		must(t, err)
		return q
	}
	if q := in(); q != nil {
		t.Errorf("a device that was never put into quarantine: %+v", q)
	}
	must(t, d.Release(vf)) // taking it out is no error
	want := quarantine()
	must(t, d.Quarantine(want))
	got := in()
	if got == nil || !got.SameBoot() || got.Since.IsZero() {
		t.Fatalf("%+v", got)
	}
	want.Version, want.Since, want.Boot = Version, got.Since, got.Boot
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("%+v, want %+v", *got, want)
	}
	if keys, err := d.List(); len(keys) != 0 || err != nil {
		t.Errorf("quarantines are listed as journals: %v %v", keys, err)
	}
	want.Reason = "another"
	must(t, d.Quarantine(want))
	if q := in(); q.Reason != "another" {
		t.Errorf("%+v", q)
	}
	must(t, d.Release(vf))
	if q := in(); q != nil {
		t.Errorf("still in quarantine after Release: %+v", q)
	}
}

func TestQuarantineOfNoDevice(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		_, err := d.Quarantined(bad)
		for _, err := range []error{err, d.Quarantine(Quarantine{Device: bad}), d.Release(bad)} {
			if !cnierr.Is(err, cnierr.InvalidConfig) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
}

// A quarantine that cannot be read keeps the device from being used.
func TestDamagedQuarantine(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	must(t, d.Quarantine(quarantine()))
	path := filepath.Join(d.Path, QuarantineDir, vf)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := encode(Quarantine{Version: Version + 1, Device: vf})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "torn": good[:len(good)-2], "changed": []byte(strings.Replace(string(good), "web", "wob", 1)), "newer": newer, "no object": []byte("00000000 1\n"),
	} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		q, err := d.Quarantined(vf)
		if q != nil || !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %+v, %v", name, q, err)
		}
	}
}

func FuzzDecodeQuarantine(f *testing.F) {
	q := quarantine()
	q.Version = Version
	good, err := encode(q)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := decodeQuarantine(data)
		if (q == nil) == (err == nil) {
			t.Fatalf("%+v, %v", q, err)
		}
		if q != nil {
			q.SameBoot()
		}
	})
}
