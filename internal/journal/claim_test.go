package journal

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

const vf = "0000:21:10.4"

func always(answer bool) func(Key) (bool, error) {
	return func(Key) (bool, error) { return answer, nil }
}

func claims(t *testing.T, d Dir, k Key, held bool) Key {
	t.Helper()
	holder, err := d.Claim(context.Background(), vf, k, always(held))
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

func TestClaims(t *testing.T) {
	ctx, d := context.Background(), Dir{Path: t.TempDir()}
	a, b := Key{"a", "eth0"}, Key{"b", "eth0"}
	holds := func(want Key) {
		t.Helper()
		if got, err := d.Holder(ctx, vf); err != nil || got != want {
			t.Errorf("holder %v, %v, want %v", got, err, want)
		}
	}
	holds(Key{})
	if err := d.Unclaim(ctx, vf, a); err != nil {
		t.Errorf("giving back what nobody ever claimed: %v", err)
	}
	if got := claims(t, d, a, true); got != a {
		t.Errorf("a free device: %v", got)
	}
	if got := claims(t, d, a, true); got != a {
		t.Errorf("one's own: %v", got)
	}
	if got := claims(t, d, b, true); got != a {
		t.Errorf("another's: %v", got)
	}
	if got := claims(t, d, b, false); got != b {
		t.Errorf("a void claim: %v", got)
	}
	if err := d.Unclaim(ctx, vf, a); err != nil {
		t.Error(err)
	}
	holds(b) // a late release does not touch the next owner's
	if err := d.Unclaim(ctx, vf, b); err != nil {
		t.Error(err)
	}
	holds(Key{})
	if err := os.WriteFile(filepath.Join(d.Path, "devices", vf), []byte("a@eth"), 0o600); err != nil {
		t.Fatal(err)
	}
	holds(Key{}) // torn
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if _, err := d.Claim(ctx, bad, a, always(false)); !cnierr.Is(err, cnierr.InvalidConfig) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestOneOfManyClaimsADevice: of sandboxes that fight for one device one gets it.
func TestOneOfManyClaimsADevice(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[Key]bool{}
	for i := range 20 {
		wg.Go(func() {
			k := Key{string(rune('a' + i)), "eth0"}
			holder, err := d.Claim(context.Background(), vf, k, always(true))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			won[holder] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("holders %v", won)
	}
}
