package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/sriov"
)

// told is one call of Tell by a running reconciler.
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
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Run(ctx, repair, slog.New(slog.DiscardHandler))
	}()
	n.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return out
}

// hears fails the test unless the next thing told has this reason and is about the VF.
func (n *node) hears(c <-chan told, reason string) Finding {
	n.t.Helper()
	got := <-c
	if got.reason != reason || got.Device != address {
		n.t.Fatalf("told %s of %s, want %s", got.reason, got.Finding, reason)
	}
	return got.Finding
}

// TestRunScansWhenSomethingChanges: Run scans at its start, and when links, journals or
// the kubelet's files change, even if the kubelet's directory is created after Run
// started.
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
	n.vlan(78) // a different finding, after an event of the kernel
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
	for _, id := range []string{"second", "third"} { // the second is heard after the pause too
		key = n.sandbox(id, false)
		n.hears(c, "VFStranded")
		entry, err = n.Journal.Open(key)
		n.must(err)
		n.must(entry.Close())
	}
}

// deaf are links whose events fail to open at first, then end at once.
type deaf struct {
	sriov.Links
	asked *atomic.Int32
}

// Events implements [sriov.Links].
func (d deaf) Events(ctx context.Context) (<-chan struct{}, error) {
	ended := make(chan struct{})
	switch d.asked.Add(1) {
	case 1:
		return nil, errors.New("no netlink")
	case 2:
		close(ended)
		return ended, nil
	}
	return d.Links.Events(ctx)
}

// Without events, Run scans all the same, and tries again to listen.
func TestRunScansWithoutEvents(t *testing.T) {
	n := newNode(t)
	links := deaf{n.Host.Links, new(atomic.Int32)}
	n.Host.Links, n.deaf = links, time.Millisecond
	n.vlan(77)
	c := n.run(false)
	n.hears(c, "VFLeftover")
	for links.asked.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	n.vlan(78)
	n.hears(c, "VFLeftover")
}

// A node on which nothing can ever be heard is scanned at least once.
func TestRunScansOnceWithoutAnything(t *testing.T) {
	n := newNode(t)
	n.vlan(77)
	n.Journal.Path = filepath.Join(n.Journal.Path, "file", "below")
	n.must(os.WriteFile(filepath.Dir(n.Journal.Path), nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	var log bytes.Buffer
	n.deaf = time.Hour
	n.Host.Links = looked{n.Host.Links, cancel}
	n.Run(ctx, false, slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(log.String(), "not a directory") {
		t.Errorf("it says %q", log.String())
	}
}

// looked ends a run when it reads network devices.
type looked struct {
	sriov.Links
	end func()
}

// Link implements [sriov.Links].
func (l looked) Link(name string) (*sriov.Link, error) {
	l.end()
	return l.Links.Link(name)
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

// A repair that was tried is counted, whether it succeeds or not; a finding that is only
// reported is not counted.
func TestRepairsAreCounted(t *testing.T) {
	n := newNode(t)
	var counted []string
	n.Count = func(k Kind, failed bool) { counted = append(counted, fmt.Sprint(k, " failed: ", failed)) }
	look := func() { n.round(t.Context(), &round{}, true, slog.New(slog.DiscardHandler)) }
	n.vlan(77)
	n.Exclude = []string{pf}
	look()
	n.Exclude = nil
	n.tree.Refuse(address, sriov.PropertyVLAN, errors.New("busy"))
	look()
	n.tree.Refuse(address, sriov.PropertyVLAN, nil)
	look() // out of the quarantine that the failed reset caused
	if want := []string{"leftover failed: true", "quarantined failed: false"}; !slices.Equal(counted, want) {
		t.Errorf("%q, want %q", counted, want)
	}
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

// A scan that cannot see the VFs, as while they are recreated, changes no findings, and
// is repeated although nothing changes.
func TestScanThatSeesNothing(t *testing.T) {
	n := newNode(t)
	n.deaf = time.Millisecond
	var heard bytes.Buffer
	log, state := slog.New(slog.NewTextHandler(&heard, nil)), round{}
	n.vlan(77)
	if !n.round(t.Context(), &state, false, log) {
		t.Fatal("nothing was seen")
	}
	sys, hidden := filepath.Join(n.tree.Root(), "sys"), filepath.Join(n.tree.Root(), "hidden")
	n.must(os.Rename(sys, hidden))
	if n.round(t.Context(), &state, false, log) {
		t.Error("it has seen VFs where there is no sysfs")
	}
	if found := n.Findings(); len(found) != 1 || strings.Contains(heard.String(), "in order again") {
		t.Errorf("found %v, said %s", found, &heard)
	}
	c := n.run(false) // which sees nothing at first
	n.must(os.Rename(hidden, sys))
	n.hears(c, "VFLeftover")
}

// The files that a repair itself creates and removes cause no scan: otherwise a repair
// that gives way would never come to rest.
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
