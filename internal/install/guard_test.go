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
	"github.com/manifold-cni/manifold/test/harness"
)

// guarded is a runtime's directory with Manifold installed in it.
type guarded struct {
	harness.Place
	g    *Guard
	conf []byte
	said chan string
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	d := &guarded{Place: harness.NewPlace(t), said: make(chan string, 100)}
	d.File("10-cluster.conflist", config("cluster-net", "bridge"))
	from := filepath.Join(t.TempDir(), "from")
	d.Must(os.Mkdir(from, 0o700))
	for _, p := range programs {
		d.Must(os.WriteFile(filepath.Join(from, p), nil, 0o700))
	}
	d.Must(d.installer(from).Install(context.Background(), new(bytes.Buffer)))
	d.conf = d.read()
	d.g = NewGuard(d.Path("00-manifold.conflist"), func(_ context.Context, reason, message string) { d.said <- reason + ": " + message }, slog.New(slog.DiscardHandler))
	d.g.every = time.Hour
	return d
}

// config returns a network configuration of one plugin.
func config(name, cniType string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":%q}]}`, name, cniType)
}

func (d *guarded) installer(from string) *Installer {
	return &Installer{
		From: from, BinDir: d.Path("bin"), ConfDir: d.Dir, ConfName: "00-manifold.conflist", StateDir: d.Path("state"), Force: true,
	}
}

// read returns Manifold's configuration, nil when there is none.
func (d *guarded) read() []byte {
	raw, err := os.ReadFile(d.Path("00-manifold.conflist"))
	if os.IsNotExist(err) {
		return nil
	}
	d.Must(err)
	return raw
}

// wantSaid waits for the next Event and checks its parts.
func (d *guarded) wantSaid(parts ...string) {
	d.T.Helper()
	select {
	case text := <-d.said:
		for _, part := range parts {
			if !strings.Contains(text, part) {
				d.T.Errorf("said %q, without %q", text, part)
			}
		}
	case <-time.After(time.Minute):
		d.T.Fatal("nothing was said")
	}
}

func TestGuardPutsBack(t *testing.T) {
	conf := "00-manifold.conflist"
	for name, tc := range map[string]struct {
		do   func(*guarded) error
		says []string
	}{
		"renamed by a known one": {
			func(d *guarded) error { return os.Rename(d.Path(conf), d.Path(conf+".cilium_bak")) },
			[]string{"CNIConfigurationRestored", conf + ".cilium_bak", "cni.exclusive"},
		},
		"renamed": {
			func(d *guarded) error { return os.Rename(d.Path(conf), d.Path(conf+".old")) }, []string{"renamed to " + conf + ".old"},
		},
		"removed":     {func(d *guarded) error { return os.Remove(d.Path(conf)) }, []string{"was removed"}},
		"overwritten": {func(d *guarded) error { d.File(conf, config("x", "bridge")); return nil }, []string{"overwritten"}},
		"emptied":     {func(d *guarded) error { return os.Truncate(d.Path(conf), 0) }, []string{"overwritten"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuarded(t)
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); d.g.Run(ctx) }()
			defer func() { stop(); <-done }()
			for range 2 { // it keeps watching
				d.Must(tc.do(d))
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

// Without a watch the guard still looks now and then.
func TestGuardLooksWithoutAWatch(t *testing.T) {
	d := newGuarded(t)
	d.g.every = time.Millisecond
	d.Must(os.Rename(d.Dir, d.Dir+".away")) // so that nothing can be watched
	if err := d.g.Ready(context.Background()); err == nil {
		t.Error("ready before the first check")
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.g.Run(ctx) }()
	defer func() { stop(); <-done }()
	for end := time.Now().Add(time.Minute); d.g.Ready(ctx) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the guard does not check")
		}
	}
	conf := filepath.Join(d.Dir+".away", "00-manifold.conflist")
	d.Must(errors.Join(os.Rename(conf, conf+".cilium_bak"), os.Rename(d.Dir+".away", d.Dir)))
	d.wantSaid("CNIConfigurationRestored", ".cilium_bak")
	if got := d.read(); !bytes.Equal(got, d.conf) {
		t.Errorf("left:\n%s", got)
	}
}

// The guard respects what an administrator or another installation wrote.
func TestGuardTakesWhatIsMeant(t *testing.T) {
	d := newGuarded(t)
	edited := strings.Replace(string(d.conf), `"cluster-net"`, `"other-net"`, 1)
	d.File("00-manifold.conflist", edited)
	d.g.look(context.Background())
	d.Must(os.Remove(d.Path("00-manifold.conflist")))
	d.g.look(context.Background())
	if got := string(d.read()); got != edited {
		t.Errorf("put back:\n%s", got)
	}
	d.wantSaid("was removed")
	d.Must(d.installer("").Uninstall(new(bytes.Buffer)))
	d.g.look(context.Background())
	if got := d.read(); got != nil || files.Exists(d.Path("manifold.d")) {
		t.Errorf("after uninstall: %s", got)
	}
	d.g.saying.Wait()
	if len(d.said) != 0 {
		t.Errorf("said %q", <-d.said)
	}
}

func TestGuardSaysWhoStandsBefore(t *testing.T) {
	d := newGuarded(t)
	d.File("00-aaa.conf", `{"cniVersion":"1.0.0","name":"aaa","type":"ptp"}`)
	d.g.look(context.Background())
	d.wantSaid("CNIConfigurationLost", "00-aaa.conf")
	if err := d.g.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "00-aaa.conf") {
		t.Errorf("ready: %v", err)
	}
	d.g.look(context.Background()) // reported once
	d.Must(os.Remove(d.Path("00-aaa.conf")))
	d.g.look(context.Background())
	if err := d.g.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	d.Must(os.Remove(d.Path("00-manifold.conflist"))) // which is a different problem
	if err := d.g.first(); err != nil {
		t.Errorf("behind it: %v", err)
	}
	d.g.saying.Wait()
	if len(d.said) != 0 {
		t.Errorf("said %q", <-d.said)
	}
}
