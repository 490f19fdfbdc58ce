package attach

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// A VF that its device plugin names by netdev has one owner like any other: while the
// netdev is away in the pod, and after it came back under another name.
func TestVFCalledByItsNetworkDeviceHasOneOwner(t *testing.T) {
	h := newHardware(t, `echo "$CNI_CONTAINERID" >>"$dir/calls"`)
	h.id, h.ns = vfNetDev, "/proc/self/ns/net"
	before := h.attach("old") // which renames the netdev
	h.holds("old")
	if err := h.claim("early"); !cnierr.Is(err, cnierr.TryAgain) || !strings.Contains(err.Error(), "sandbox old@eth0 still has it") {
		t.Errorf("while its owner lives: %v", err)
	}
	h.must(h.del("early"))
	h.ends("old")
	h.must(h.claim("new"))
	h.stands(before)
	h.use(200)
	want := h.vf()
	h.must(h.del("old"))
	h.stands(want)
	h.holds("new")
	if calls, err := os.ReadFile(h.path("calls")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the delegate was run: %s, %v", calls, err)
	}
	h.must(h.del("new"))
	h.nothingLeft()
}

// ends makes the network namespace in a sandbox's journal one that is gone.
func (h *hardware) ends(id string) {
	h.t.Helper()
	h.damage(id, func(l []string) {
		_, body, _ := strings.Cut(l[0], " ")
		l[0] = sound(strings.TrimSuffix(strings.Replace(body, h.ns, h.path("gone"), 1), "\n"))
	})
	h.ns = h.path("gone")
}

// The host tells what a name means, or else a journal, which then also has the device
// information for network-status. While a journal that may tell cannot be read, the pod
// waits. An ID that names no VF stays the device plugin's own.
func TestWhatTheIDOfADeviceNames(t *testing.T) {
	h := newHardware(t, "")
	h.id = vfNetDev
	name := func(id string) (*plan.Attachment, error) {
		t.Helper()
		r, err := h.Engine.begin(t.Context(), h.invocation("asks"))
		h.must(err)
		defer func() { h.must(r.end(true, nil)) }()
		h.id = id
		p := h.plan("asks")
		return &p.Attachments[0], r.nameVFs(t.Context(), p)
	}
	is := func(id, address string) *plan.Attachment {
		t.Helper()
		a, err := name(id)
		d := a.Device
		if err != nil || d.ID != id || d.PCIAddress != address || address != "" && (d.PF != pfAddress || d.VFIndex != vfIndex || d.Driver != "igbvf") {
			t.Errorf("%s is %+v, %v, want %q", id, d, err, address)
		}
		return a
	}
	for _, other := range []string{uplink, "vf-2", "eth99", "0000:21:10.4-0", "mlx5_core.sf.2"} {
		is(other, "")
	}
	is(vfNetDev, vfAddress)
	h.id, h.info = vfNetDev, json.RawMessage(`{"type":"pci"}`)
	h.attach("old")
	h.info = nil // a planner that does not see the netdev has none
	if a := is(vfNetDev, vfAddress); string(a.DeviceInfo) != `{"type":"pci"}` {
		t.Errorf("device-info %s, want that of the journal", a.DeviceInfo)
	}
	h.damage("old", func(l []string) { l[0] = damaged })
	if _, err := name(vfNetDev); !cnierr.Is(err, cnierr.TryAgain) || !strings.Contains(err.Error(), h.journalFile("old")) || !strings.Contains(err.Error(), "device "+vfNetDev) {
		t.Errorf("%v, want the damaged journal", err)
	}
	is(uplink, "") // the host tells
	if err := h.del("old"); !cnierr.Is(err, cnierr.JournalCorrupt) {
		t.Errorf("%v, want the damage", err)
	}
	is(vfNetDev, vfAddress) // the host tells again
}

// The late DEL of a sandbox that another meta-plugin attached is also fenced off when
// its VF is known by netdev name and the netdev is away.
func TestForeignSandboxIsFencedOffByName(t *testing.T) {
	h := newHardware(t, `touch "$dir/ran"`)
	h.id = vfNetDev
	h.attach("new")
	used := h.vf()
	h.record("foreign", vfNetDev)
	h.must(h.del("foreign"))
	h.stands(used)
	h.holds("new")
	if _, err := os.Stat(h.path("ran")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the delegate was run on the next owner's VF: %v", err)
	}
	h.must(h.del("new"))
	h.nothingLeft()
}
