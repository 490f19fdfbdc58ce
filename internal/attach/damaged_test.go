package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/sriov"
)

// journalFile returns the path of a sandbox's journal.
func (h *hardware) journalFile(id string) string {
	return h.path("state/" + key(id).String() + ".journal")
}

// damage changes the lines of a sandbox's journal.
func (h *hardware) damage(id string, change func(lines []string)) {
	h.t.Helper()
	raw, err := os.ReadFile(h.journalFile(id))
	h.must(err)
	lines := strings.SplitAfter(string(raw), "\n")
	change(lines)
	h.must(os.WriteFile(h.journalFile(id), []byte(strings.Join(lines, "")), 0o600))
}

// damaged is a line with a wrong checksum.
const damaged = "00000000 {}\n"

// sound returns body as a line of a journal.
func sound(body string) string {
	return fmt.Sprintf("%08x %s\n", crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)), body)
}

// collect runs GC with an empty list of live sandboxes.
func (h *hardware) collect() error {
	h.t.Helper()
	inv := h.invocation("")
	inv.ContainerID, inv.IfName, inv.NamesValid, inv.Valid = "", "", true, []netconf.Attachment{}
	return h.GC(h.t.Context(), inv)
}

// The VF of a damaged journal is restored when a sound line has its state, and goes
// into quarantine otherwise. The damage is reported once, and the pod can be deleted.
func TestReleaseOfADamagedJournal(t *testing.T) {
	const restored, confined, alone = "restored", "confined", "left alone"
	otherBoot := func(l []string) {
		_, body, _ := strings.Cut(l[0], " ")
		var header map[string]any
		_ = json.Unmarshal([]byte(body), &header) // as it was just written
		header["boot"] = "another"
		raw, _ := json.Marshal(header)
		l[0], l[2], l[3] = sound(string(raw)), damaged, damaged
	}
	for name, tc := range map[string]struct {
		damage func(lines []string)
		conf   map[string]any
		want   string
	}{
		"behind the record of the device": {func(l []string) { l[2], l[3] = damaged, damaged }, nil, restored},
		"the first line":                  {func(l []string) { l[0] = damaged }, nil, restored},
		"the record of the device":        {func(l []string) { l[1], l[2] = damaged, damaged }, nil, confined},
		"all":                             {func(l []string) { copy(l, []string{"\x00\x00", "", "", "", ""}) }, nil, confined},
		"of another boot":                 {otherBoot, nil, alone},
		"restoreDevices: false":           {func(l []string) { l[1], l[2] = damaged, damaged }, map[string]any{"restoreDevices": false}, alone},
	} {
		for verb, release := range map[string]func(*hardware) error{
			"DEL": func(h *hardware) error { return h.del("old") }, "GC": (*hardware).collect,
		} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				h := newHardware(t, `echo "$CNI_COMMAND" >>"$dir/calls"`)
				before := h.attach("old")
				used := h.vf()
				h.damage("old", tc.damage)
				for k, v := range tc.conf {
					h.conf[k] = v
				}
				err := release(h)
				if !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), "released 1 attachment from") || !strings.Contains(err.Error(), ".corrupt-") {
					t.Fatalf("%v, want the damage and where the file is", err)
				}
				h.must(release(h))
				h.holds("")
				q, err := h.Journal.Quarantined(vfAddress)
				h.must(err)
				switch {
				case tc.want == restored:
					h.stands(before)
					h.nothingLeft()
				case tc.want == alone:
					h.stands(used)
					h.nothingLeft()
				case q == nil || q.Sandbox != "old@eth0" || !strings.Contains(q.Reason, "damaged"):
					t.Errorf("quarantine %+v", q)
				default:
					h.confined(used)
				}
			})
		}
	}
}

// A journal with one damaged line is still read. When that line is the record of the
// VF's state, the VF goes into quarantine, whoever comes next.
func TestReleaseWithOneLineDamaged(t *testing.T) {
	const trying, attached, verified = 1, 2, 3
	only := func(l []string) { l[trying] = damaged; clear(l[attached:]) }
	line := func(i int) func([]string) { return func(l []string) { l[i] = damaged } }
	for name, tc := range map[string]struct {
		damage   func(lines []string)
		confined bool
	}{
		"the record of the device":               {line(trying), true},
		"the record of the device, and no other": {only, true},
		"the result":                             {line(attached), false},
		"the last":                               {line(verified), false},
	} {
		for verb, next := range map[string]func(*hardware) error{
			"DEL": func(h *hardware) error { return h.del("old") }, "GC": (*hardware).collect,
			"ADD": func(h *hardware) error { return h.claim("next") },
		} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				h := newHardware(t, "exit 0")
				before := h.attach("old")
				used := h.vf()
				h.damage("old", tc.damage)
				err := next(h)
				if refused := verb == "ADD" && tc.confined; refused != cnierr.Is(err, cnierr.Quarantined) || !refused && err != nil {
					t.Fatalf("%v, want it refused: %v", err, refused)
				}
				h.must(h.del("next"))
				h.must(h.del("old"))
				if !tc.confined {
					h.stands(before)
					h.nothingLeft()
					return
				}
				if q, err := h.Journal.Quarantined(vfAddress); err != nil || q == nil || q.Sandbox != "old@eth0" || q.Pod.Name != "old" {
					t.Fatalf("quarantine %+v, %v", q, err)
				}
				h.confined(used)
			})
		}
	}
}

// confined fails the test unless the next pod is refused the VF until somebody accepts
// it in its present state.
func (h *hardware) confined(used *sriov.Snapshot) {
	h.t.Helper()
	err := h.claim("new")
	if !cnierr.Is(err, cnierr.Quarantined) || !strings.Contains(err.Error(), "not known") || !strings.Contains(err.Error(), "--accept "+vfAddress) {
		h.t.Errorf("the next pod: %v, want why and what to do", err)
	}
	h.must(h.del("new"))
	h.stands(used)
	h.must(h.Journal.Release(vfAddress))
	h.must(h.claim("newer"))
	h.must(h.del("newer"))
	h.nothingLeft()
}

// A delegate's failure is reported together with the damage, keeps nothing else from
// being released, and is tried again.
func TestDamagedJournalWithDelegateFailing(t *testing.T) {
	h := newHardware(t, "exit 1")
	before := h.attach("old")
	h.damage("old", func(l []string) { l[0] = damaged })
	err := h.del("old")
	if !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "network fast") {
		t.Errorf("%v, want damage and failure", err)
	}
	h.stands(before)
	h.holds("old")
	h.delegate("exit 0")
	if err := h.del("old"); !cnierr.Is(err, cnierr.JournalCorrupt) {
		t.Errorf("%v, want the damage", err)
	}
	h.must(h.del("old"))
	h.nothingLeft()
}

func TestADDNamesTheDamagedJournal(t *testing.T) {
	h := newHardware(t, "exit 0")
	h.attach("old")
	used := h.vf()
	h.damage("old", func(l []string) { l[0] = damaged })
	err := h.claim("new")
	if !cnierr.Is(err, cnierr.TryAgain) || cnierr.KindOf(err) != cnierr.TryAgain {
		t.Errorf("%v, want to be tried again", err)
	}
	for _, part := range []string{"old@eth0", h.journalFile("old"), "checksum", "delete its pod"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	h.stands(used)
	h.must(h.del("new"))
}

// When neither the claim nor the journals tell who holds the VF, the pod can be
// deleted, and nobody gets the VF until that is known.
func TestDELWithClaimAndJournalDamaged(t *testing.T) {
	h := newHardware(t, `touch "$dir/ran"`)
	before := h.attach("old")
	used := h.vf()
	r := h.begin("other")
	h.must(r.end(false, nil))
	h.damage("other", func(l []string) { l[0] = damaged })
	h.must(os.WriteFile(h.path("state/devices/"+vfAddress), []byte("old@"), 0o600))
	err := h.claim("new")
	if !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), h.journalFile("other")) || !strings.Contains(err.Error(), "devices/"+vfAddress) {
		t.Errorf("ADD: %v, want both files", err)
	}
	h.must(h.del("new"))
	h.must(h.del("old"))
	h.stands(used)
	if _, err := os.Stat(h.path("ran")); err == nil {
		t.Error("the delegate was run on a VF that may be another's")
	}
	if err := h.del("other"); !cnierr.Is(err, cnierr.JournalCorrupt) {
		t.Errorf("%v, want the damage", err)
	}
	h.must(h.claim("newer"))
	h.stands(before)
	h.must(h.del("newer"))
	h.nothingLeft()
}

// CHECK fails when the journal lacks the device's state before ADD: it would compare
// less than the caller believes.
func TestCHECKNeedsToKnowTheDeviceOfBefore(t *testing.T) {
	h := newHardware(t, "")
	r := h.begin("old")
	h.must(r.entry.Append(journal.Step{Phase: journal.Trying}))
	h.must(r.entry.Append(journal.Step{Phase: journal.Attached, Result: json.RawMessage(`{"cniVersion":"1.0.0"}`)}))
	h.must(r.end(false, nil))
	err := h.Check(t.Context(), h.invocation("old"))
	if !cnierr.Is(err, cnierr.JournalCorrupt) || !strings.Contains(err.Error(), "is not known") || !strings.Contains(err.Error(), vfAddress) {
		t.Errorf("%v, want an error that the former state is not known", err)
	}
}

// record writes a record of libcni for a sandbox with a device.
func (h *hardware) record(id, device string) {
	h.t.Helper()
	config := `{"cniVersion":"1.0.0","name":"fast","type":"mover","deviceID":"` + device + `"}`
	raw, err := json.Marshal(map[string]any{
		"kind": "cniCacheV1", "containerId": id, "config": []byte(config), "ifName": "net1", "networkName": "fast",
		"netns": h.path("gone"), "result": map[string]any{"cniVersion": "1.0.0"},
	})
	h.must(err)
	h.must(os.MkdirAll(h.path("state/results"), 0o700))
	h.must(os.WriteFile(h.path("state/results/fast-"+id+"-net1"), raw, 0o600))
}

// A sandbox that another meta-plugin attached has no journal; its late DEL is fenced
// off all the same.
func TestForeignSandboxIsFencedOff(t *testing.T) {
	h := newHardware(t, `touch "$dir/ran"`)
	h.record("foreign", vfAddress)
	h.attach("new")
	used := h.vf()
	h.must(h.del("foreign"))
	h.stands(used)
	h.holds("new")
	if _, err := os.Stat(h.path("ran")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the delegate was run on the next owner's VF: %v", err)
	}
	if left, err := filepath.Glob(h.path("state/results/*foreign*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	h.must(h.del("new"))
	h.must(os.Remove(h.path("ran")))
	h.record("foreign", vfAddress)
	h.must(h.del("foreign"))
	if _, err := os.Stat(h.path("ran")); err != nil {
		t.Errorf("the delegate was not run on what nobody else has: %v", err)
	}
	h.nothingLeft()
}
