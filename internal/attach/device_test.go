package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// The VF of these tests, its PF, and their netdevs.
const (
	vfAddress = "0000:21:10.4"
	vfIndex   = 2
	vfNetDev  = "enp33s16f4"
	pfAddress = "0000:21:00.0"
	uplink    = "enp33s0"
)

// silent is a planner that plans nothing and ignores reports.
type silent struct{}

func (silent) Plan(context.Context, plan.Request) (*plan.Plan, error) {
	return nil, cnierr.New("plan", cnierr.NotReady, "this planner has no plans")
}
func (silent) Report(context.Context, plan.Report) error { return nil }
func (silent) Status(context.Context, plan.StatusQuery) (json.RawMessage, error) {
	return nil, nil
}

// hardware is a node with a tree of VFs and a shell script as its delegate.
type hardware struct {
	*Engine
	t    *testing.T
	tree *sriovtest.Tree
	dir  string
	conf map[string]any
	id   string // the allocated device ID: the VF's address or its netdev
	ns   string // network namespace of the sandboxes
	// cookie identifies the namespace that ns led to at ADD; 0 when that is unknown.
	cookie uint64
	info   json.RawMessage // device information of the VF in plans
	// written is how the network's configuration names the VF itself when nobody has
	// allocated it.
	written string
}

// newHardware returns a node whose delegate runs body.
func newHardware(t *testing.T, body string) *hardware {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	h := &hardware{t: t, tree: tree, dir: t.TempDir(), id: vfAddress}
	h.ns = h.path("gone")
	h.Engine = &Engine{
		Planner: silent{}, Journal: journal.Dir{Path: h.path("state")}, Links: tree.Host().Links, Log: slog.New(slog.DiscardHandler), Stderr: io.Discard,
	}
	h.conf = map[string]any{
		"cniVersion": "1.0.0", "name": "manifold", "type": "manifold", "cniDir": h.Journal.Path, "binDir": h.dir, "sysRoot": tree.Root(), "lockTimeout": "1m",
		"deviceInfoDir": h.path("info"),
	}
	h.delegate(body)
	h.must(os.Mkdir(h.path("info"), 0o700))
	h.prepare()
	t.Cleanup(func() { h.must(tree.Err()) })
	return h
}

func (h *hardware) path(name string) string { return filepath.Join(h.dir, name) }

func (h *hardware) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// delegate makes the node's delegate run body, with the node's directory in $dir.
func (h *hardware) delegate(body string) {
	h.t.Helper()
	h.must(os.Rename(script(h.t, fmt.Sprintf("dir=%s\n%s", h.dir, body)), h.path("mover")))
}

// invocation returns a call of the runtime for a sandbox whose namespace is h.ns.
func (h *hardware) invocation(id string) *netconf.Invocation {
	h.t.Helper()
	raw, err := json.Marshal(h.conf)
	h.must(err)
	inv, err := netconf.ParseLeniently(&skel.CmdArgs{ContainerID: id, IfName: "eth0", StdinData: raw, Path: h.dir})
	h.must(err)
	return inv
}

func key(id string) journal.Key { return journal.Key{ContainerID: id, IfName: "eth0"} }

// plan returns the plan of a pod with the VF.
func (h *hardware) plan(id string) *plan.Plan {
	device := &plan.Device{Resource: "lab.example/vfs", ID: h.id}
	if h.id == vfAddress {
		device.PCIAddress, device.PF, device.VFIndex, device.Driver = vfAddress, pfAddress, vfIndex, "igbvf"
	}
	var written []string
	if h.written != "" {
		device, written = nil, []string{h.written}
	}
	return &plan.Plan{
		Version: plan.Version, Pod: plan.Pod{Namespace: "shop", Name: id}, ContainerID: id, NetNS: h.ns, NetNSCookie: h.cookie,
		Attachments: []plan.Attachment{{
			Name: "shop/fast", Network: "fast", IfName: "net1", DeviceInfoFile: h.path("info/" + id),
			Capabilities: map[string]json.RawMessage{"CNIDeviceInfoFile": json.RawMessage(strconv.Quote(h.path("info/" + id)))},
			Config:       json.RawMessage(`{"cniVersion":"1.0.0","name":"fast","plugins":[{"type":"mover"}]}`),
			Device:       device, Written: written,
			DeviceInfo: h.info,
		}},
	}
}

// begin runs ADD of a sandbox up to the claim of the VF.
func (h *hardware) begin(id string) *run {
	h.t.Helper()
	r, err := h.Engine.begin(h.t.Context(), h.invocation(id))
	h.must(err)
	p := h.plan(id)
	h.must(r.nameVFs(h.t.Context(), p))
	h.must(r.ownWritten(p))
	h.must(r.beginJournal(h.t.Context(), p))
	return r
}

// claim runs ADD of a sandbox up to and including the claim, and returns the claim's
// error.
func (h *hardware) claim(id string) error {
	h.t.Helper()
	r := h.begin(id)
	err := r.claim(h.t.Context(), &r.entry.Plan.Attachments[0])
	h.must(r.end(false, nil))
	return err
}

// attach runs an ADD that gets the VF and changes everything it can. It returns the
// VF's state before.
func (h *hardware) attach(id string) *sriov.Snapshot {
	h.t.Helper()
	before := h.vf()
	r := h.begin(id)
	h.must(r.claim(h.t.Context(), &r.entry.Plan.Attachments[0]))
	raw, err := json.Marshal(before)
	h.must(err)
	h.must(r.entry.Append(journal.Step{Phase: journal.Trying, Before: raw}))
	result := json.RawMessage(`{"cniVersion":"1.0.0"}`)
	h.must(r.entry.Append(journal.Step{Phase: journal.Attached, Result: result}))
	h.must(r.entry.Append(journal.Step{Phase: journal.Verified}))
	list, err := listOf(&r.entry.Plan.Attachments[0])
	h.must(err)
	h.must(r.seedCache(list, r.runtimeConf(&r.entry.Plan.Attachments[0], ""), result))
	h.must(os.WriteFile(h.path("info/"+id), []byte("{}"), 0o600))
	h.use(100)
	h.must(r.end(false, nil))
	return before
}

// prepare sets on the VF what an administrator may have set, so that the state before
// ADD differs from that of a freshly created VF.
func (h *hardware) prepare() {
	h.t.Helper()
	set := sriov.VFState{VLAN: 7, VLANQoS: 1, VLANProto: "802.1q", SpoofChk: false, Trust: true, LinkState: "disable", MaxTxRate: 50}
	for _, p := range []sriov.Property{
		sriov.PropertyVLAN, sriov.PropertySpoofChk, sriov.PropertyTrust, sriov.PropertyLinkState, sriov.PropertyRate,
	} {
		h.must(h.tree.Host().Links.SetVF(uplink, vfIndex, p, set))
	}
}

// use changes everything that a pod and its delegate can change on a VF.
func (h *hardware) use(vlan int) {
	h.t.Helper()
	links, now := h.tree.Host().Links, h.vf()
	dirty := sriov.VFState{MAC: "02:00:00:00:00:99", VLAN: vlan, VLANQoS: 3, VLANProto: "802.1ad", SpoofChk: true, LinkState: "enable", MaxTxRate: 200}
	for _, p := range []sriov.Property{
		sriov.PropertyVLAN, sriov.PropertySpoofChk, sriov.PropertyTrust, sriov.PropertyLinkState, sriov.PropertyRate, sriov.PropertyMAC,
	} {
		h.must(links.SetVF(uplink, vfIndex, p, dirty))
	}
	h.must(links.SetNetDev(now.NetDevs[0].Name, sriov.NetDev{Name: "eth7", MAC: dirty.MAC, MTU: 9000, Alias: vfNetDev}))
}

// vf returns the state of the VF.
func (h *hardware) vf() *sriov.Snapshot {
	h.t.Helper()
	s, err := h.tree.Host().Snapshot(vfAddress)
	h.must(err)
	return s
}

// stands fails the test unless the VF has the state want.
func (h *hardware) stands(want *sriov.Snapshot) {
	h.t.Helper()
	if left := want.Compare(h.vf()); len(left) > 0 {
		h.t.Errorf("the VF is not as it should be: %s", sriov.Sentences(left))
	}
}

// holds fails the test unless the sandbox with that ID holds the VF; "" means nobody.
func (h *hardware) holds(id string) {
	h.t.Helper()
	want := journal.Key{}
	if id != "" {
		want = key(id)
	}
	if got, err := h.Journal.Holder(h.t.Context(), vfAddress); err != nil || got != want {
		h.t.Errorf("holder %v, %v, want %v", got, err, want)
	}
}

// nothingLeft fails the test if anything of any sandbox is left.
func (h *hardware) nothingLeft() {
	h.t.Helper()
	h.holds("")
	for _, pattern := range []string{"state/*.journal", "state/*@*.lock", "state/results/*", "state/quarantine/*", "info/*"} {
		if left, err := filepath.Glob(h.path(pattern)); err != nil || len(left) > 0 {
			h.t.Errorf("left: %v, %v", left, err)
		}
	}
}

func (h *hardware) del(id string) error {
	h.t.Helper()
	return h.Del(h.t.Context(), h.invocation(id))
}

// DEL restores the VF even when the delegate refuses.
func TestDELRestoresTheVFWhateverTheDelegateDoes(t *testing.T) {
	const fails = `echo '{"cniVersion":"1.0.0","code":7,"msg":"no more"}'; exit 1`
	for name, tc := range map[string]struct {
		body string
		conf map[string]any
		kind cnierr.Kind
		want string
	}{
		"it fails":                          {fails, nil, cnierr.DelegateFailed, "no more"},
		"it dies":                           {`kill -KILL $$`, nil, cnierr.DelegateFailed, "signal 9"},
		"it hangs":                          {`exec sleep 600`, map[string]any{"delegateTimeout": "100ms"}, cnierr.DelegateTimeout, "deadline"},
		"it is gone":                        {"", nil, cnierr.DelegateMissing, "mover"},
		"it cannot be read what was to run": {"", nil, cnierr.InvalidDefinition, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHardware(t, tc.body)
			before := h.attach("old")
			for k, v := range tc.conf {
				h.conf[k] = v
			}
			switch tc.kind {
			case cnierr.DelegateMissing:
				h.must(os.Remove(h.path("mover")))
			case cnierr.InvalidDefinition:
				h.spoil("old")
			}
			for range 2 { // the runtime tries again
				err := h.del("old")
				if !cnierr.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("%v, want the delegate's error %s with %q", err, tc.kind, tc.want)
				}
				h.stands(before)
				h.holds("old") // for the next DEL
			}
			if tc.kind == cnierr.InvalidDefinition {
				return
			}
			h.delegate("exit 0")
			h.must(h.del("old"))
			h.stands(before)
			h.nothingLeft()
		})
	}
}

// spoil rewrites a sandbox's journal with an invalid configuration.
func (h *hardware) spoil(id string) {
	h.t.Helper()
	old, err := h.Journal.Open(key(id))
	h.must(err)
	h.must(old.Close())
	p := h.plan(id)
	p.Attachments[0].Config = json.RawMessage(`{"cniVersion":"1.0.0","name":"fast","plugins":[]}`)
	entry, err := h.Journal.Begin(h.t.Context(), key(id), p)
	h.must(err)
	for _, s := range old.Steps {
		h.must(entry.Append(s))
	}
}

// When delegate and driver both refuse, DEL reports both and the VF stays claimed. When
// only the driver refuses, the pod can be deleted.
func TestDELWithDelegateAndDriverRefusing(t *testing.T) {
	h := newHardware(t, "exit 1")
	before := h.attach("old")
	h.tree.Refuse(vfAddress, sriov.PropertyTrust, unix.EBUSY)
	err := h.del("old")
	if !cnierr.Is(err, cnierr.TeardownIncomplete) || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "trust of the VF: wanted on, found off") {
		t.Errorf("%v, want what the delegate and the driver refused", err)
	}
	h.holds("old")
	h.delegate("exit 0")
	h.must(h.del("old"))
	h.holds("")
	q, err := h.Journal.Quarantined(vfAddress)
	if err != nil || q == nil || !strings.Contains(q.Reason, "trust of the VF") {
		t.Fatalf("quarantine %+v, %v", q, err)
	}
	if err := h.claim("new"); !cnierr.Is(err, cnierr.Quarantined) {
		t.Errorf("the next pod: %v", err)
	}
	h.must(h.del("new"))
	h.tree.Refuse(vfAddress, sriov.PropertyTrust, nil)
	h.must(h.claim("newer"))
	h.stands(before)
	h.must(h.del("newer"))
	h.nothingLeft()
}

// A PF that cannot be asked, or does not answer, says nothing about the settings of its
// VF: no pod gets the VF until the PF has answered.
func TestSilentPFIsNoCleanVF(t *testing.T) {
	away := func(h *hardware) { h.tree.RemoveNetDev(uplink) } // into another network namespace
	back := func(h *hardware) { h.tree.AddNetDev(pfAddress, sriovtest.NetDev{Name: uplink}) }
	omit := func(answers int) func(*hardware) { return func(h *hardware) { h.tree.Omit(vfAddress, answers) } }
	for name, tc := range map[string]struct {
		silence, end func(*hardware)
		fault        string
	}{
		"it is away":                {away, back, "no network device here"},
		"it leaves the VF out":      {omit(-1), omit(0), "does not report"},
		"it leaves it out at first": {omit(3), omit(0), ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHardware(t, "exit 0")
			before := h.attach("old")
			tc.silence(h)
			h.must(h.del("old"))
			q, err := h.Journal.Quarantined(vfAddress)
			h.must(err)
			if (q != nil) != (tc.fault != "") || q != nil && !strings.Contains(q.Reason, tc.fault) {
				t.Fatalf("after DEL: quarantine %+v, want one for %q", q, tc.fault)
			}
			if q == nil {
				h.stands(before)
				return
			}
			if err := h.claim("new"); !cnierr.Is(err, cnierr.Quarantined) || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("the next pod: %v", err)
			}
			tc.end(h)
			h.must(h.claim("newer"))
			h.stands(before)
			h.attach("dead")
			tc.silence(h)
			if err := h.claim("heir"); !cnierr.Is(err, cnierr.Quarantined) || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("a pod that takes the VF over: %v", err)
			}
		})
	}
}

// A VF that was bound to another driver while its pod had it is not in its former
// state, even though no netdev can be compared. The delegate's failure to find it is
// passed over.
func TestVFWithAnotherDriverIsConfined(t *testing.T) {
	for _, driver := range []string{"vfio-pci", ""} {
		t.Run("driver "+driver, func(t *testing.T) {
			h := newHardware(t, `test -z "$CNI_NETNS"`)
			before := h.attach("old")
			for _, d := range h.vf().NetDevs {
				h.tree.RemoveNetDev(d.Name)
			}
			h.tree.Bind(vfAddress, driver)
			h.must(h.del("old"))
			q, err := h.Journal.Quarantined(vfAddress)
			if err != nil || q == nil || !strings.Contains(q.Reason, "driver: wanted igbvf, found") {
				t.Fatalf("quarantine %+v, %v", q, err)
			}
			if err := h.claim("new"); !cnierr.Is(err, cnierr.Quarantined) {
				t.Errorf("the next pod: %v", err)
			}
			h.tree.Bind(vfAddress, "igbvf")
			h.tree.AddNetDev(vfAddress, sriovtest.NetDev{Name: vfNetDev})
			h.must(h.claim("newer"))
			h.stands(before)
		})
	}
}

// Claims of VFs on which no delegate ran are given back with their sandbox.
func TestUntriedClaimsAreGivenBack(t *testing.T) {
	for name, phase := range map[string]journal.Phase{"killed after its claim": "", "no program could be started": journal.Untouched} {
		t.Run(name, func(t *testing.T) {
			h := newHardware(t, "exit 1")
			before := h.vf()
			r := h.begin("old")
			h.must(r.claim(t.Context(), &r.entry.Plan.Attachments[0]))
			if phase != "" {
				h.must(r.entry.Append(journal.Step{Phase: journal.Trying}))
				h.must(r.entry.Append(journal.Step{Phase: phase}))
			}
			h.must(r.end(false, nil))
			h.must(h.del("old"))
			h.stands(before)
			h.nothingLeft()
		})
	}
}

// When the next owner's ADD puts the VF of a dead sandbox into quarantine and dies, the
// late DEL restores the VF and ends the quarantine.
func TestLateDELEndsTheQuarantineOfItsOwnVF(t *testing.T) {
	h := newHardware(t, "exit 0")
	before := h.attach("old")
	h.tree.Refuse(vfAddress, sriov.PropertyVLAN, unix.EBUSY)
	if err := h.claim("new"); !cnierr.Is(err, cnierr.Quarantined) {
		t.Fatalf("%v, want a quarantine", err)
	}
	h.must(h.del("new"))
	h.tree.Refuse(vfAddress, sriov.PropertyVLAN, nil)
	h.must(h.del("old"))
	h.stands(before)
	h.nothingLeft()
}

func TestLateDELIsFencedOff(t *testing.T) {
	h := newHardware(t, `echo "$CNI_CONTAINERID" >>"$dir/calls"`)
	h.attach("old")
	h.must(h.claim("new")) // takes the VF over and restores it
	h.use(200)
	want := h.vf()
	h.must(h.del("old"))
	h.stands(want)
	h.holds("new")
	if calls, err := os.ReadFile(h.path("calls")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the delegate was run: %s, %v", calls, err)
	}
	if _, err := os.Stat(h.path("info/old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("device information is left: %v", err)
	}
}

// A sandbox gave its claim back in an earlier DEL that left something else. While its
// next DEL runs the delegate, no ADD gets the VF.
func TestADDWaitsForALateDEL(t *testing.T) {
	h := newHardware(t, `touch "$dir/reached"; while ! test -e "$dir/gate"; do sleep 0.01; done`)
	before := h.attach("old")
	h.must(h.Journal.Unclaim(t.Context(), vfAddress, key("old")))
	deleted := make(chan error)
	go func() { deleted <- h.Del(t.Context(), h.invocation("old")) }()
	for {
		if _, err := os.Stat(h.path("reached")); err == nil {
			break
		}
		select {
		case err := <-deleted:
			t.Fatalf("DEL ended: %v", err)
		default:
		}
	}
	if err := h.claim("new"); !cnierr.Is(err, cnierr.TryAgain) || !strings.Contains(err.Error(), "old@eth0") {
		t.Errorf("ADD during the DEL: %v", err)
	}
	h.must(os.WriteFile(h.path("gate"), nil, 0o600))
	h.must(<-deleted)
	h.stands(before)
	h.holds("")
	h.must(h.del("new"))
	h.nothingLeft()
}

// While the reconciler repairs the VF, DEL fails and is tried again.
func TestDELWaitsForARepair(t *testing.T) {
	h := newHardware(t, `touch "$dir/ran"`)
	before := h.attach("old")
	repair := journal.RepairKey(vfAddress)
	lock, err := h.Journal.Lock(t.Context(), repair)
	h.must(err)
	_, err = h.Journal.Claim(t.Context(), vfAddress, repair, func(journal.Key) (bool, error) { return false, nil })
	h.must(err)
	if err := h.del("old"); !cnierr.Is(err, cnierr.TryAgain) || !strings.Contains(err.Error(), "being reset") {
		t.Errorf("DEL during a repair: %v", err)
	}
	if _, err := os.Stat(h.path("ran")); err == nil {
		t.Error("the delegate was run on a VF that is being reset")
	}
	h.must(lock.Unlock(true)) // the reconciler died
	h.must(h.del("old"))
	h.stands(before)
	h.nothingLeft()
}

// TestADDAndLateDELRace runs ADD and a late DEL at the same time: the one that holds
// the claim works, and the other leaves the VF alone.
func TestADDAndLateDELRace(t *testing.T) {
	const rounds = 20
	h := newHardware(t, `cat "$dir/state/devices/`+vfAddress+`" >>"$dir/calls"`)
	got := 0
	for i := range rounds {
		old, next := fmt.Sprintf("old%d", i), fmt.Sprintf("new%d", i)
		before := h.attach(old)
		if i%2 == 0 { // killed after giving the VF back
			h.must(h.Journal.Unclaim(t.Context(), vfAddress, key(old)))
		}
		var failed, refused error
		var mine *sriov.Snapshot
		r, inv := h.begin(next), h.invocation(old)
		var wg sync.WaitGroup
		wg.Go(func() { failed = h.Del(t.Context(), inv) })
		if refused = r.claim(t.Context(), &r.entry.Plan.Attachments[0]); refused == nil {
			got++
			h.use(1000 + i)
			mine = h.vf()
		}
		wg.Wait()
		h.must(errors.Join(failed, r.end(false, nil)))
		if refused != nil && !cnierr.Is(refused, cnierr.TryAgain) {
			t.Errorf("ADD: %v", refused)
		}
		if mine == nil {
			h.stands(before)
		} else {
			h.stands(mine)
			h.holds(next)
			_, err := h.tree.Host().Reset(vfAddress, before)
			h.must(err)
		}
		h.must(h.del(next))
		h.holds("")
	}
	calls, err := os.ReadFile(h.path("calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(calls)) {
		if !strings.HasPrefix(line, "old") {
			t.Errorf("a late DEL's delegate ran while the VF was claimed by %q", line)
		}
	}
	t.Logf("the ADD got the VF in %d rounds of %d", got, rounds)
}

// A sandbox is dead, and its VF free, when the path of its network namespace leads to
// another namespace.
func TestVFOfASandboxWhosePathLeadsElsewhere(t *testing.T) {
	for cookie, held := range map[uint64]bool{0: true, 1 << 40: false} {
		h := newHardware(t, "")
		h.ns, h.cookie = "/proc/self/ns/net", cookie
		h.attach("old")
		if err := h.claim("new"); (err != nil) != held || held && !cnierr.Is(err, cnierr.TryAgain) {
			t.Errorf("cookie %d: %v", cookie, err)
		}
	}
}

// However often a DEL fails and however much a delegate says about it, the journal stays
// small enough to be read.
func TestFailedDELsDoNotFillTheJournal(t *testing.T) {
	for name, message := range map[string]string{
		"the same":  `head -c 3000000 /dev/zero | tr '\0' x`,
		"different": `date +%s%N; head -c 3000000 /dev/zero | tr '\0' x`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHardware(t, `[ "$CNI_COMMAND" = DEL ] && { printf '{"code":77,"msg":"busy '; (`+message+`) | tr -d '\n'; printf '"}'; exit 1; }`)
			h.attach("old")
			for range 25 {
				if err := h.del("old"); !cnierr.Is(err, cnierr.TeardownIncomplete) || !strings.Contains(err.Error(), "busy") {
					t.Fatalf("DEL: %.200v", err)
				}
			}
			fi, err := os.Stat(h.journalFile("old"))
			h.must(err)
			if fi.Size() > 1<<20 {
				t.Errorf("the journal has %d bytes", fi.Size())
			}
			entry, err := h.Journal.Open(key("old"))
			h.must(err)
			if phase, problem := entry.Phase(0); phase != journal.ReleaseFailed || !strings.Contains(problem, "busy") {
				t.Errorf("%s: %.200s", phase, problem)
			}
			h.delegate("")
			h.must(h.del("old"))
		})
	}
}
