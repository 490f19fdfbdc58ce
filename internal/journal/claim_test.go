package journal

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
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
	holds(b) // a late release does not touch the next owner's claim
	if err := d.Unclaim(ctx, vf, b); err != nil {
		t.Error(err)
	}
	holds(Key{})
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if _, err := d.Claim(ctx, bad, a, always(false)); !cnierr.Is(err, cnierr.InvalidConfig) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// DEL asks for its claim each time: a claim that the sandbox already holds is not
// rewritten.
func TestOwnClaimIsNotWritten(t *testing.T) {
	d, k := Dir{Path: t.TempDir()}, Key{"a", "eth0"}
	claims(t, d, k, true)
	path := filepath.Join(d.Path, claimsDir, vf)
	if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	claims(t, d, k, true)
	fi, err := os.Stat(path)
	if err != nil || !fi.ModTime().Equal(time.Unix(1, 0)) {
		t.Errorf("written at %v, %v", fi.ModTime(), err)
	}
}

// user begins the journal of a sandbox that has the device.
func user(t *testing.T, d Dir, id string) *Entry {
	t.Helper()
	e, err := d.Begin(t.Context(), Key{id, "eth0"}, &plan.Plan{Attachments: []plan.Attachment{{}, {Device: &plan.Device{PCIAddress: vf}}}})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, e, Step{Attachment: 1, Phase: Trying})
	return e
}

// A damaged claim does not lose the device: the journals tell who holds it.
func TestDamagedClaim(t *testing.T) {
	ctx, self := t.Context(), Key{"self", "eth0"}
	for name, damage := range map[string]string{"torn": "a@eth", "zeros": "\x00\x00\x00\x00", "no key": "nonsense\n"} {
		t.Run(name, func(t *testing.T) {
			d := Dir{Path: t.TempDir()}
			spoil := func() {
				t.Helper()
				if err := os.WriteFile(filepath.Join(d.Path, claimsDir, vf), []byte(damage), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			claims(t, d, Key{"none", "eth0"}, true)
			spoil()
			if holder, err := d.Holder(ctx, vf); err != nil || holder != (Key{}) {
				t.Errorf("holder %v, %v", holder, err)
			}
			user(t, d, "self")
			if got := claims(t, d, self, true); got != self {
				t.Errorf("no other has it, but the holder is %v", got)
			}
			spoil()
			appendAll(t, user(t, d, "released"), Step{Attachment: 1, Phase: Released})
			first := user(t, d, "first")
			user(t, d, "last")
			if got := claims(t, d, self, true); got != (Key{"last", "eth0"}) {
				t.Errorf("holder %v, want the sandbox that tried it last", got)
			}
			if err := os.WriteFile(first.path, []byte(damage), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := d.Claim(ctx, vf, self, always(true))
			if !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), first.path) || !strings.Contains(err.Error(), claimsDir+"/"+vf) {
				t.Errorf("%v, want an error that names the claim and the journal that cannot be read", err)
			}
		})
	}
}

func TestClaimed(t *testing.T) {
	ctx, d, k := t.Context(), Dir{Path: t.TempDir()}, Key{"a", "eth0"}
	has := func(want ...string) {
		t.Helper()
		if got, err := d.Claimed(ctx, k); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	has()
	for _, device := range []string{"0000:21:10.6", vf, "0000:21:11.0"} {
		if _, err := d.Claim(ctx, device, k, always(true)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Claim(ctx, "0000:21:11.0", Key{"b", "eth0"}, always(false)); err != nil {
		t.Fatal(err)
	}
	has(vf, "0000:21:10.6")
}

// The unreadable journal of a sandbox matters to Had only when the sandbox has a
// claim or may have one.
func TestUnreadableJournalOfWhoHasNoDevice(t *testing.T) {
	ctx, d, self := t.Context(), Dir{Path: t.TempDir()}, Key{"self", "eth0"}
	had := func(want ...string) {
		t.Helper()
		a, err := d.Had(ctx, self, &plan.Device{ID: "enp33s16v4"})
		if a != nil || (err != nil) != (len(want) > 0) {
			t.Errorf("%v, %v", a, err)
		}
		for _, path := range want {
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want one that names %s", err, path)
			}
		}
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plain, owner := user(t, d, "plain"), user(t, d, "owner")
	claims(t, d, owner.Key, true)
	write(plain.path, "00000000 {}\n")
	had()
	write(owner.path, "00000000 {}\n")
	had(owner.path)
	if err := d.Unclaim(ctx, vf, owner.Key); err != nil {
		t.Fatal(err)
	}
	had()
	write(filepath.Join(d.Path, claimsDir, vf), "owner@eth")
	had(plain.path, owner.path)
}

// Of many sandboxes that claim one device at the same time, exactly one gets it.
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
