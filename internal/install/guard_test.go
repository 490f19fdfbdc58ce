package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/files"
)

// guarded is a runtime's directory with Manifold installed in it.
type guarded struct {
	t    *testing.T
	dir  string
	g    *Guard
	conf []byte
	said chan string
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	d := &guarded{t: t, dir: t.TempDir(), said: make(chan string, 100)}
	d.file("10-cluster.conflist", config("cluster-net", "bridge"))
	from := filepath.Join(t.TempDir(), "from")
	d.must(os.Mkdir(from, 0o700))
	for _, p := range programs {
		d.must(os.WriteFile(filepath.Join(from, p), nil, 0o700))
	}
	d.must(d.installer(from).Install(context.Background(), new(bytes.Buffer)))
	d.conf = d.read()
	d.g = NewGuard(d.path("00-manifold.conflist"), func(_ context.Context, reason, message string) { d.said <- reason + ": " + message }, slog.New(slog.DiscardHandler))
	d.g.every = time.Hour
	return d
}

func (d *guarded) path(elem string) string { return filepath.Join(d.dir, elem) }

func (d *guarded) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *guarded) file(name, content string) {
	d.t.Helper()
	d.must(os.WriteFile(d.path(name), []byte(content), 0o600))
}

// config is a network configuration of one plugin.
func config(name, cniType string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":%q}]}`, name, cniType)
}

func (d *guarded) installer(from string) *Installer {
	return &Installer{
		From: from, BinDir: d.path("bin"), ConfDir: d.dir, ConfName: "00-manifold.conflist", StateDir: d.path("state"), Force: true,
	}
}

// read returns Manifold's configuration, nil when there is none.
func (d *guarded) read() []byte {
	raw, err := os.ReadFile(d.path("00-manifold.conflist"))
	if os.IsNotExist(err) {
		return nil
	}
	d.must(err)
	return raw
}

// wantSaid waits for the next thing that is said.
func (d *guarded) wantSaid(parts ...string) {
	d.t.Helper()
	select {
	case text := <-d.said:
		for _, part := range parts {
			if !strings.Contains(text, part) {
				d.t.Errorf("said %q, without %q", text, part)
			}
		}
	case <-time.After(time.Minute):
		d.t.Fatal("nothing was said")
	}
}

func TestGuardPutsBack(t *testing.T) {
	conf := "00-manifold.conflist"
	for name, tc := range map[string]struct {
		do   func(*guarded) error
		says []string
	}{
		"renamed by a known one": {
			func(d *guarded) error { return os.Rename(d.path(conf), d.path(conf+".cilium_bak")) },
			[]string{"CNIConfigurationRestored", conf + ".cilium_bak", "cni.exclusive"},
		},
		"renamed": {
			func(d *guarded) error { return os.Rename(d.path(conf), d.path(conf+".old")) }, []string{"renamed to " + conf + ".old"},
		},
		"removed":     {func(d *guarded) error { return os.Remove(d.path(conf)) }, []string{"was removed"}},
		"overwritten": {func(d *guarded) error { d.file(conf, config("x", "bridge")); return nil }, []string{"overwritten"}},
		"emptied":     {func(d *guarded) error { return os.Truncate(d.path(conf), 0) }, []string{"overwritten"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuarded(t)
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); d.g.Run(ctx) }()
			defer func() { stop(); <-done }()
			for range 2 { // it goes on watching
				d.must(tc.do(d))
				d.wantSaid(tc.says...)
				if got := d.read(); !bytes.Equal(got, d.conf) {
					t.Errorf("left:\n%s", got)
				}
			}
			if err := d.g.Ready(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// There may be no watch to be had: the guard looks all the same.
func TestGuardLooksWithoutAWatch(t *testing.T) {
	d := newGuarded(t)
	d.g.every = time.Millisecond
	d.must(os.Rename(d.dir, d.dir+".away")) // nothing can be watched
	if err := d.g.Ready(context.Background()); err == nil {
		t.Error("it is ready before it has looked")
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.g.Run(ctx) }()
	defer func() { stop(); <-done }()
	for end := time.Now().Add(time.Minute); d.g.Ready(ctx) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not look")
		}
	}
	conf := filepath.Join(d.dir+".away", "00-manifold.conflist")
	d.must(errors.Join(os.Rename(conf, conf+".cilium_bak"), os.Rename(d.dir+".away", d.dir)))
	d.wantSaid("CNIConfigurationRestored", ".cilium_bak")
	if got := d.read(); !bytes.Equal(got, d.conf) {
		t.Errorf("left:\n%s", got)
	}
}

// What an administrator or another installation wrote is no theft.
func TestGuardTakesWhatIsMeant(t *testing.T) {
	d := newGuarded(t)
	edited := strings.Replace(string(d.conf), `"cluster-net"`, `"other-net"`, 1)
	d.file("00-manifold.conflist", edited)
	d.g.look(context.Background())
	d.must(os.Remove(d.path("00-manifold.conflist")))
	d.g.look(context.Background())
	if got := string(d.read()); got != edited {
		t.Errorf("put back:\n%s", got)
	}
	d.wantSaid("was removed")
	d.must(d.installer("").Uninstall(new(bytes.Buffer)))
	d.g.look(context.Background())
	if got := d.read(); got != nil || files.Exists(d.path("manifold.d")) {
		t.Errorf("after uninstall: %s", got)
	}
	d.g.saying.Wait()
	if len(d.said) != 0 {
		t.Errorf("said %q", <-d.said)
	}
}

func TestGuardSaysWhoStandsBefore(t *testing.T) {
	d := newGuarded(t)
	d.file("00-aaa.conf", `{"cniVersion":"1.0.0","name":"aaa","type":"ptp"}`)
	d.g.look(context.Background())
	d.wantSaid("CNIConfigurationLost", "00-aaa.conf")
	if err := d.g.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "00-aaa.conf") {
		t.Errorf("ready: %v", err)
	}
	d.g.look(context.Background()) // said once
	d.must(os.Remove(d.path("00-aaa.conf")))
	d.g.look(context.Background())
	if err := d.g.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	d.must(os.Remove(d.path("00-manifold.conflist"))) // which is another matter
	if err := d.g.first(); err != nil {
		t.Errorf("behind it: %v", err)
	}
	d.g.saying.Wait()
	if len(d.said) != 0 {
		t.Errorf("said %q", <-d.said)
	}
}
