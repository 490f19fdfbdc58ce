package reconcile

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/manifold-cni/manifold/internal/journal"
)

// told is what a running reconciler tells.
type told struct {
	reason string
	Finding
}

// run runs the reconciler until the test ends, and returns what it tells.
func (n *node) run(repair bool) <-chan told {
	n.t.Helper()
	out := make(chan told, 16)
	n.Tell = func(_ context.Context, reason string, f Finding) { out <- told{reason, f} }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, repair, slog.New(slog.DiscardHandler)) }()
	n.t.Cleanup(func() {
		cancel()
		n.must(<-ended)
	})
	return out
}

// hears fails unless this is told next.
func (n *node) hears(c <-chan told, reason string) Finding {
	n.t.Helper()
	got := <-c
	if got.reason != reason || got.Device != address {
		n.t.Fatalf("told %s of %s, want %s", got.reason, got.Finding, reason)
	}
	return got.Finding
}

// TestRunScansWhenSomethingChanges: at the start, when links change, journals, or
// the kubelet's files, whose directory may come later than the reconciler.
func TestRunScansWhenSomethingChanges(t *testing.T) {
	n := newNode(t)
	kubelet := filepath.Join(t.TempDir(), "kubelet", "device-plugins")
	n.Watch = []string{kubelet}
	n.vlan(77)
	c := n.run(false)
	f := n.hears(c, "VFLeftover")
	if got := n.Findings(); len(got) != 1 || got[0] != f {
		t.Errorf("findings %v, told %v", got, f)
	}
	n.vlan(78) // another finding, after an event of the kernel's
	n.hears(c, "VFLeftover")
	n.vlan(0)
	key := n.sandbox("dead", false) // a journal
	n.hears(c, "VFStranded")
	entry, err := n.Journal.Open(key)
	n.must(err)
	n.allocate(address)
	n.vlan(79)
	n.must(entry.Close())
	n.must(os.MkdirAll(kubelet, 0o755))
	n.allocate()
	n.must(os.WriteFile(filepath.Join(kubelet, "checkpoint"), nil, 0o600))
	n.hears(c, "VFLeftover")
}

func TestRunRepairsOnce(t *testing.T) {
	n := newNode(t)
	n.vlan(77)
	c := n.run(true)
	n.hears(c, "VFLeftover")
	n.hears(c, ReasonRepaired)
	if v := n.state().VF.VLAN; v != 0 {
		t.Errorf("VLAN %d", v)
	}
	n.tree.RemoveNetDev(netDev) // what is only reported is not told as repaired
	n.hears(c, "VFOrphaned")
}

// A repair that gave way is tried again with the next scan, and told once.
func TestRepairThatGaveWayIsTriedAgain(t *testing.T) {
	n := newNode(t)
	key := n.sandbox("dead", false)
	n.vlan(77)
	var heard []string
	n.Tell = func(_ context.Context, reason string, _ Finding) { heard = append(heard, reason) }
	log, state := slog.New(slog.DiscardHandler), round{}
	lock, err := n.Journal.Lock(t.Context(), key) // its DEL is under way
	n.must(err)
	n.round(t.Context(), &state, true, log)
	n.round(t.Context(), &state, true, log)
	if v := n.state().VF.VLAN; v != 77 {
		t.Fatalf("repaired beside a DEL: VLAN %d", v)
	}
	n.must(lock.Unlock(false)) // which has failed
	n.round(t.Context(), &state, true, log)
	if v := n.state().VF.VLAN; v != 0 {
		t.Errorf("VLAN %d", v)
	}
	n.round(t.Context(), &state, true, log)
	if want := []string{"VFStranded", ReasonRepaired}; !slices.Equal(heard, want) {
		t.Errorf("told %v, want %v", heard, want)
	}
}

// What a repair itself makes and removes is no cause of the next scan: one that
// gives way would never come to rest.
func TestRepairLocksCauseNoScan(t *testing.T) {
	n := newNode(t)
	lock, err := n.Journal.Lock(t.Context(), journal.RepairKey(address))
	n.must(err)
	own := lock.File().Name()
	n.must(lock.Unlock(true))
	key := n.sandbox("pod", true)
	w := watched{n.Journal.Path}
	for name, want := range map[string]bool{own: false, filepath.Join(n.Journal.Path, key.String()+".journal"): true, filepath.Join(n.Journal.Path, key.String()+".lock"): true} {
		if got := w.concerns(nil, fsnotify.Event{Name: name, Op: fsnotify.Remove}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestEveryKindHasAReason(t *testing.T) {
	for _, k := range Kinds() {
		if Reason(k) == "" {
			t.Errorf("%s has none", k)
		}
	}
}
