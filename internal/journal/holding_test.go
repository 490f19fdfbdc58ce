package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/manifold-cni/manifold/internal/plan"
)

// Only what nobody else releases counts: attachments other than the default network,
// and the device of a default network. An unreadable journal counts, since it may
// hold one.
func TestHolding(t *testing.T) {
	def, second := plan.Attachment{Default: true}, plan.Attachment{}
	onDevice := plan.Attachment{Default: true, Device: &plan.Device{ID: "0000:00:01.0"}}
	tried := Step{Attachment: 1, Phase: Trying}
	for name, c := range map[string]struct {
		attachments []plan.Attachment
		steps       []Step
		damage      bool
		want        bool
	}{
		"default alone":   {[]plan.Attachment{def}, []Step{{Phase: Trying}, {Phase: Attached}}, false, false},
		"second":          {[]plan.Attachment{def, second}, []Step{tried}, false, true},
		"second released": {[]plan.Attachment{def, second}, []Step{tried, {Attachment: 1, Phase: Released}}, false, false},
		"second failed":   {[]plan.Attachment{def, second}, []Step{tried, {Attachment: 1, Phase: ReleaseFailed}}, false, true},
		"never tried":     {[]plan.Attachment{def, second}, []Step{{Phase: Trying}}, false, false},
		"device":          {[]plan.Attachment{onDevice}, []Step{{Phase: Trying}}, false, true},
		"damaged":         {[]plan.Attachment{def}, nil, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir{filepath.Join(t.TempDir(), "state")}
			if holding, err := d.Holding(); err != nil || holding {
				t.Fatalf("a directory that does not exist: %t, %v", holding, err)
			}
			e, err := d.Begin(context.Background(), key, &plan.Plan{Version: 1, Attachments: c.attachments})
			if err != nil {
				t.Fatal(err)
			}
			appendAll(t, e, c.steps...)
			if c.damage {
				if err := os.WriteFile(d.file(key), []byte("00000000 {}\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if holding, err := d.Holding(); err != nil || holding != c.want {
				t.Errorf("%t, %v; want %t", holding, err, c.want)
			}
		})
	}
}

// A sandbox that is being worked on may get anything, so it counts. A lock file that
// a killed plugin left without a journal does not count, and is removed.
func TestHoldingWhileASandboxIsWorkedOn(t *testing.T) {
	d := Dir{t.TempDir()}
	l, err := d.Lock(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	if holding, err := d.Holding(); err != nil || !holding {
		t.Errorf("under way: %t, %v", holding, err)
	}
	if err := l.Unlock(false); err != nil {
		t.Fatal(err)
	}
	if holding, err := d.Holding(); err != nil || holding {
		t.Errorf("a lock that nobody holds: %t, %v", holding, err)
	}
	if _, err := os.Stat(filepath.Join(d.Path, key.String()+lockSuffix)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}
