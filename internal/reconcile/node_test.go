package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// uplink is the network device of the VF's PF, netDev that of the VF.
const (
	uplink = "enp33s0"
	netDev = "enp33s16f4"
	index  = 2
)

// node is a node with the hardware of a simulated tree.
type node struct {
	*Reconciler
	t    *testing.T
	tree *sriovtest.Tree
	want *plan.VF // what networks ask for their VF
	id   string   // the ID under which the VF is allocated; empty for its address

	mu        sync.Mutex
	allocated Allocated
	unknown   error // why the allocations are not known
}

func newNode(t *testing.T) *node {
	n := &node{t: t, tree: sriovtest.New(t.TempDir())}
	n.tree.AddIGB()
	n.Reconciler = &Reconciler{
		Journal: journal.Dir{Path: t.TempDir()}, Host: n.tree.Host(),
		Allocated: func(context.Context) (*Allocated, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			a := n.allocated
			return &a, n.unknown
		},
	}
	t.Cleanup(func() { n.must(n.tree.Err()) })
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// allocate makes these devices the only ones that the kubelet has given to pods.
func (n *node) allocate(ids ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.allocated.Given = map[string]bool{}
	for _, id := range ids {
		n.allocated.Given[id] = true
	}
}

// vlan sets the VLAN that the PF holds for the VF.
func (n *node) vlan(id int) {
	n.t.Helper()
	n.must(n.Host.Links.SetVF(uplink, index, sriov.PropertyVLAN, sriov.VFState{VLAN: id, VLANProto: "802.1q"}))
}

func (n *node) state() *sriov.Snapshot {
	n.t.Helper()
	s, err := n.Host.Snapshot(address)
	n.must(err)
	return s
}

// finds fails the test unless exactly these kinds are found, all for the VF. It returns
// the findings.
func (n *node) finds(kinds ...Kind) []Finding {
	n.t.Helper()
	found, err := n.Scan(n.t.Context())
	n.must(err)
	var got []Kind
	for _, f := range found {
		if f.Device != address {
			n.t.Errorf("found %s", f)
		}
		got = append(got, f.Kind)
	}
	if !slices.Equal(got, kinds) {
		n.t.Fatalf("found %v, want %v", found, kinds)
	}
	return found
}

// sandbox writes the journal of a pod that got the VF in its current state and for which
// verification checked the given properties. A living sandbox has this process's network
// namespace, a dead one has none.
func (n *node) sandbox(id string, alive bool, checked ...string) journal.Key {
	n.t.Helper()
	before, err := json.Marshal(n.state())
	n.must(err)
	entry := n.begin(id, alive)
	n.must(entry.Append(journal.Step{Phase: journal.Trying, Before: before}))
	n.must(entry.Append(journal.Step{Phase: journal.Verified, Checked: checked}))
	return entry.Key
}

// begin is sandbox up to the claim: nothing has been tried yet.
func (n *node) begin(id string, alive bool) *journal.Entry {
	n.t.Helper()
	p := &plan.Plan{
		Pod: plan.Pod{Namespace: "shop", Name: id, UID: id + "-uid"}, NetNS: filepath.Join(n.t.TempDir(), "gone"),
		Attachments: []plan.Attachment{{Name: "shop/fast", IfName: "net1", Device: &plan.Device{Resource: "x", ID: cmp.Or(n.id, address), PCIAddress: address, PF: pf, VFIndex: index, Driver: "igbvf"}, Want: plan.Want{VF: n.want}}},
	}
	if alive {
		p.NetNS = "/proc/self/ns/net"
	}
	entry, err := n.Journal.Begin(n.t.Context(), journal.Key{ContainerID: id, IfName: "eth0"}, p)
	n.must(err)
	n.claim(entry.Key)
	return entry
}

// claim makes a sandbox the VF's holder, whoever held the VF before.
func (n *node) claim(key journal.Key) {
	n.t.Helper()
	holder, err := n.Journal.Claim(n.t.Context(), address, key, func(journal.Key) (bool, error) { return false, nil })
	n.must(err)
	if holder != key {
		n.t.Fatalf("%s holds the VF", holder)
	}
}

// quarantined returns the VF's quarantine.
func (n *node) quarantined() *journal.Quarantine {
	n.t.Helper()
	q, err := n.Journal.Quarantined(address)
	n.must(err)
	return q
}

// spared fails the test unless the finding is left alone, for that reason.
func (n *node) spared(f Finding, reason string) {
	n.t.Helper()
	before := n.state()
	err := n.Repair(n.t.Context(), f)
	if !errors.Is(err, ErrNotRepaired) || !strings.Contains(err.Error(), reason) {
		n.t.Errorf("%v, want %v: %q", err, ErrNotRepaired, reason)
	}
	if left := before.Compare(n.state()); len(left) > 0 || n.quarantined() != nil && f.Kind != Quarantined {
		n.t.Errorf("changed: %v, quarantine %+v", left, n.quarantined())
	}
}

func TestLeftoversAreReset(t *testing.T) {
	n := newNode(t)
	n.finds()
	n.vlan(77)
	f := n.finds(Leftover)[0]
	n.must(n.Repair(t.Context(), f))
	n.finds()
	log, err := os.ReadFile(filepath.Join(n.Journal.Path, repairsFile))
	n.must(err)
	if strings.Count(string(log), "\n") != 1 || !strings.Contains(string(log), `"kind":"leftover","device":"`+address) || !strings.Contains(string(log), `"to":{`) {
		t.Errorf("the log of repairs: %s", log)
	}
	if holder, err := n.Journal.Holder(t.Context(), address); err != nil || holder != (journal.Key{}) {
		t.Errorf("the VF is still claimed by %s, %v", holder, err)
	}
}

// The log of repairs is kept, and is bounded in size.
func TestLogOfRepairsIsBounded(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(n.Journal.Path, repairsFile)
	for round, size := range []int64{maxRepairs, maxRepairs, 0} {
		if size > 0 {
			n.must(os.WriteFile(path, bytes.Repeat([]byte{'x'}, int(size)), 0o600))
		}
		n.vlan(77)
		n.must(n.Repair(t.Context(), n.finds(Leftover)[0]))
		log, err := os.ReadFile(path)
		n.must(err)
		want := 1 // lines
		if size == 0 {
			want = 2
		}
		if bytes.Count(log, []byte("\n")) != want || bytes.Contains(log, []byte("xx")) {
			t.Errorf("round %d: the log has %d bytes: %.200s", round, len(log), log)
		}
		old, err := os.Stat(filepath.Join(n.Journal.Path, oldRepairs))
		if err != nil || old.Size() != maxRepairs {
			t.Errorf("round %d: the old log: %+v, %v", round, old, err)
		}
	}
}

func TestStrandedVFsAreMadeAsTheirSandboxFoundThem(t *testing.T) {
	n := newNode(t)
	before := n.state()
	n.sandbox("dead", false)
	n.vlan(77)
	n.must(n.Host.Links.SetNetDev(netDev, sriov.NetDev{Name: "net1", MTU: 9000, MAC: before.NetDevs[0].MAC, Alias: netDev}))
	f := n.finds(Stranded)[0]
	if f.Pod != "shop/dead" || f.PodUID != "dead-uid" || f.Network != "shop/fast" || f.Sandbox != "dead@eth0" {
		t.Errorf("%+v", f)
	}
	n.must(n.Repair(t.Context(), f))
	if left := before.Compare(n.state()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	n.finds(Stranded) // until its DEL
}

// A VF whose driver refuses a reset is in quarantine until the reset succeeds.
func TestFailedRepairIsQuarantine(t *testing.T) {
	for name, begin := range map[string]func(n *node) Finding{
		"leftover": func(n *node) Finding { n.vlan(77); return n.finds(Leftover)[0] },
		"stranded": func(n *node) Finding { n.sandbox("dead", false); n.vlan(77); return n.finds(Stranded)[0] },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			f := begin(n)
			n.tree.Refuse(address, sriov.PropertyVLAN, unix.EBUSY)
			if err := n.Repair(t.Context(), f); !errors.Is(err, unix.EBUSY) {
				t.Fatalf("%v, want %v", err, unix.EBUSY)
			}
			q := n.quarantined()
			if q == nil || !strings.Contains(q.Reason, unix.EBUSY.Error()) || q.Pod.String() != f.Pod && f.Pod != "" {
				t.Fatalf("quarantine %+v", q)
			}
			found, err := n.Scan(t.Context())
			n.must(err)
			i := slices.IndexFunc(found, func(f Finding) bool { return f.Kind == Quarantined })
			if i < 0 || !strings.Contains(found[i].Text, "VLAN of the VF: wanted 0, found 77") {
				t.Fatalf("found %v", found)
			}
			n.tree.Refuse(address, sriov.PropertyVLAN, nil)
			n.must(n.Repair(t.Context(), found[len(found)-1]))
			if q := n.quarantined(); q != nil {
				t.Errorf("still in quarantine: %+v", q)
			}
		})
	}
}

func TestQuarantineEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(n *node, f Finding) error
		vlan int
	}{
		"repaired": {func(n *node, f Finding) error { return n.Repair(n.t.Context(), f) }, 0},
		"accepted": {func(n *node, f Finding) error { return n.Accept(n.t.Context(), f.Device) }, 77},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			to, err := json.Marshal(n.state())
			n.must(err)
			n.vlan(77)
			n.must(n.Journal.Quarantine(journal.Quarantine{Device: address, To: to}))
			n.must(tc.end(n, n.finds(Quarantined)[0]))
			if n.quarantined() != nil || n.state().VF.VLAN != tc.vlan {
				t.Errorf("VLAN %d, quarantine %+v", n.state().VF.VLAN, n.quarantined())
			}
		})
	}
}

// The race rules of docs/sriov.md: whom a repair may meet, and who wins.
func TestRepairGivesWay(t *testing.T) {
	for name, tc := range map[string]struct {
		meet func(n *node)
		want string
	}{
		"an ADD has claimed it":             {func(n *node) { n.sandbox("new", true) }, "sandbox new@eth0 has it by now"},
		"the kubelet has given it to one":   {func(n *node) { n.allocate(address) }, "no longer as it was found"},
		"allocations are not known":         {func(n *node) { n.unknown = errors.New("the kubelet is down") }, "the kubelet is down"},
		"a pod's device may be it":          {func(n *node) { n.allocated.Opaque = []Opaque{{Resource: "x", ID: "vf-2"}} }, "which may be this VF"},
		"another repair is under way":       {func(n *node) { n.lock(journal.RepairKey(address)) }, "another repair"},
		"somebody has reset it":             {func(n *node) { n.vlan(0) }, "no longer as it was found"},
		"the configuration excludes its PF": {func(n *node) { n.Exclude = []string{pf} }, "excluded"},
		"or the PF's network device":        {func(n *node) { n.Exclude = []string{uplink} }, "excluded"},
		"or one that may be the PF's":       {func(n *node) { n.Exclude = []string{"ens9"}; n.tree.RemoveNetDev(uplink) }, "may be excluded, which is not known"},
		"excluded are other PFs":            {func(n *node) { n.Exclude = []string{"0000:41:00.0"}; n.tree.RemoveNetDev(uplink) }, "no longer as it was found"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.vlan(77)
			f := n.finds(Leftover)[0]
			tc.meet(n)
			n.spared(f, tc.want)
		})
	}
}

// lock holds a sandbox's lock until the test ends.
func (n *node) lock(k journal.Key) {
	n.t.Helper()
	lock, err := n.Journal.Lock(n.t.Context(), k)
	n.must(err)
	n.t.Cleanup(func() { n.must(lock.Unlock(false)) })
}

func TestRepairOfStrandedGivesWay(t *testing.T) {
	n := newNode(t)
	dead := n.sandbox("dead", false)
	n.vlan(77)
	f := n.finds(Stranded)[0]
	t.Run("its DEL is under way", func(t *testing.T) {
		lock, err := n.Journal.Lock(t.Context(), dead)
		n.must(err)
		n.spared(f, "an operation on its sandbox is running")
		n.must(lock.Unlock(false))
	})
	t.Run("the kubelet has given it to a pod, be it its own", func(*testing.T) {
		n.allocate(address)
		n.spared(f, "the kubelet has given it to a pod")
	})
	t.Run("allocations are not known", func(*testing.T) {
		n.unknown = errors.New("the kubelet is down")
		n.spared(f, "the kubelet is down")
		n.unknown = nil
	})
	n.allocate()
	t.Run("a pod's device may be it", func(*testing.T) {
		n.allocated.Opaque = []Opaque{{Resource: "x", ID: "vf-2"}}
		n.spared(f, `a pod has device "vf-2" of x, which may be this VF`)
		n.allocated.Opaque = nil
	})
	t.Run("the next ADD has claimed it, and tries nothing yet", func(*testing.T) {
		n.begin("next", true)
		n.spared(f, "no longer has a claim to it")
	})
	t.Run("its claim was given back", func(*testing.T) {
		n.claim(dead)
		n.must(n.Journal.Unclaim(t.Context(), address, dead))
		n.spared(f, "no longer has a claim to it")
	})
	t.Run("the next ADD has taken it over", func(*testing.T) {
		n.sandbox("new", true)
		n.spared(f, "another sandbox has it")
	})
}

// A device with an opaque ID, in the kubelet's lists or in a journal, may be any VF
// except those that device plugins advertise by their addresses.
func TestDevicesThatNoIDNames(t *testing.T) {
	for name, begin := range map[string]func(n *node){
		"allocated": func(n *node) { n.allocated.Opaque = []Opaque{{Resource: "x", ID: "vf-2"}} },
		"attached": func(n *node) {
			entry, err := n.Journal.Begin(t.Context(), journal.Key{ContainerID: "app", IfName: "eth0"}, &plan.Plan{
				NetNS: "/proc/self/ns/net", Attachments: []plan.Attachment{{IfName: "net1", Device: &plan.Device{ID: "vf-2", Resource: "x"}}},
			})
			n.must(err)
			n.must(entry.Append(journal.Step{Phase: journal.Trying}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.vlan(77)
			f := n.finds(Leftover)[0]
			begin(n)
			found, err := n.Scan(t.Context())
			if want := "VF " + address + ` may be leftover, which is not known: a pod has device "vf-2" of x`; len(found) > 0 || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("found %v, %v, want %s", found, err, want)
			}
			n.spared(f, "which may be this VF")
			if why := n.given(t.Context(), address); !strings.Contains(why, "which may be this VF") {
				t.Errorf("given: %q", why)
			}
			n.vlan(0)
			n.confine(true)
			if found, err = n.Scan(t.Context()); len(found) != 1 || found[0].Kind != Quarantined || err != nil {
				t.Fatalf("found %v, %v", found, err)
			}
			n.spared(found[0], "which may be this VF")
			n.must(n.Accept(t.Context(), address))
			n.allocated.Advertised = map[string]bool{address: true}
			n.must(n.Repair(t.Context(), n.finds(Leftover)[0]))
		})
	}
}

// A VF that is allocated by the name of its network device counts as given to whoever has
// the name, even after the network device moved away with it. The journal of the pod that
// has the name tells that it is no other VF.
func TestDevicesThatJournalsName(t *testing.T) {
	for holder, tc := range map[string]struct {
		pod   Opaque
		other bool // whether another VF may be the pod's
	}{
		"its own pod":              {Opaque{PodUID: "app-uid"}, false},
		"its own pod, by its name": {Opaque{Pod: "shop/app"}, false},
		"the next pod":             {Opaque{PodUID: "next-uid", Pod: "shop/app"}, true},
	} {
		t.Run(holder, func(t *testing.T) {
			n := newNode(t)
			n.id = netDev
			n.sandbox("app", false)
			tc.pod.Resource, tc.pod.ID = "x", netDev
			n.allocated.Opaque = []Opaque{tc.pod}
			n.spared(n.finds(Stranded)[0], "the kubelet has given it to a pod")
			const other = "0000:21:10.2"
			if why := n.given(t.Context(), other); (why != "") != tc.other {
				t.Errorf("another VF is given: %q", why)
			}
			n.allocated.Opaque = nil
			n.must(n.Repair(t.Context(), n.finds(Stranded)[0]))
		})
	}
}

func TestRepairOfQuarantinedGivesWay(t *testing.T) {
	n := newNode(t)
	to, err := json.Marshal(n.state())
	n.must(err)
	n.vlan(77)
	n.must(n.Journal.Quarantine(journal.Quarantine{Device: address, To: to}))
	n.allocate(address)
	n.spared(n.finds(Quarantined)[0], "the kubelet has given it to a pod")
}

// The proposal is what the repair does, or the reason why it does nothing.
func TestProposal(t *testing.T) {
	for name, tc := range map[string]struct {
		begin   func(n *node)
		want    string
		repairs bool
	}{
		"stranded":                   {func(n *node) { n.sandbox("dead", false) }, "restore the state in which its sandbox found it", true},
		"stranded, given to a pod":   {func(n *node) { n.sandbox("dead", false); n.allocate(address) }, "nothing: the kubelet has given it to a pod", false},
		"stranded, nobody can tell":  {func(n *node) { n.sandbox("dead", false); n.unknown = errors.New("the kubelet is down") }, "nothing: whether the kubelet has given it to a pod is not known: the kubelet is down", false},
		"leftover":                   {func(n *node) { n.vlan(77) }, "reset it: no VLAN, no rates, link state auto", true},
		"leftover of an excluded PF": {func(n *node) { n.vlan(77); n.Exclude = []string{pf} }, "nothing: its PF is excluded", false},
		"quarantined":                {func(n *node) { n.confine(true) }, "restore the state in which its sandbox found it", true},
		"quarantined, given away":    {func(n *node) { n.confine(true); n.allocate(address) }, "nothing: the kubelet has given it to a pod", false},
		"quarantined, journal lost":  {func(n *node) { n.confine(false) }, "nothing: the state to restore is not known: check the VF, and accept its current state with 'manifold-agent reconcile --accept " + address + "'", false},
		"orphaned":                   {func(n *node) { n.tree.RemoveNetDev(netDev) }, "nothing: orphaned VFs are only reported", false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tc.begin(n)
			found, err := n.Scan(t.Context())
			if len(found) != 1 || (err != nil) != (n.unknown != nil) {
				t.Fatalf("found %v, %v", found, err)
			}
			p := n.Proposals(t.Context(), found)[0]
			action, repairs := p.Action, !p.Left
			if action != tc.want || repairs != tc.repairs {
				t.Errorf("%q, %t, want %q, %t", action, repairs, tc.want, tc.repairs)
			}
			if !repairs {
				n.spared(found[0], "")
				return
			}
			n.must(n.Repair(t.Context(), found[0]))
		})
	}
}

// confine changes the VF and puts it into quarantine until it is as it was before or, if
// known is false, without recording how it was.
func (n *node) confine(known bool) {
	n.t.Helper()
	var to json.RawMessage
	if known {
		var err error
		to, err = json.Marshal(n.state())
		n.must(err)
	}
	n.vlan(77)
	n.must(n.Journal.Quarantine(journal.Quarantine{Device: address, To: to}))
}

func TestDriftedAndOrphanedAreReportedAlone(t *testing.T) {
	n := newNode(t)
	n.tree.RemoveNetDev(netDev)
	n.spared(n.finds(Orphaned)[0], "only reported")
	n.spared(Finding{Kind: Drifted, Device: address}, "only reported")
}

// again creates a VF at the address of the one that is gone, as writing sriov_numvfs
// twice does.
func (n *node) again() {
	n.tree.RemoveVFs(pf)
	n.tree.AddVF(sriovtest.VF{PF: pf, Index: index, Address: address, Driver: "igbvf", NetDev: netDev})
}

// A VF that vanishes under a living sandbox, in any way, is reported, and whatever takes
// its place is left alone.
func TestVFThatVanishesUnderAPod(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(n *node)
		kind Kind
		text string
	}{
		"it alone":                  {func(n *node) { n.tree.Remove(address) }, Vanished, "the node no longer has it"},
		"all VFs of its PF":         {func(n *node) { n.tree.RemoveVFs(pf) }, Vanished, "the node no longer has it"},
		"its PF":                    {func(n *node) { n.tree.Remove(pf) }, Vanished, "the node no longer has it"},
		"and comes back as another": {func(n *node) { n.again() }, Replaced, "PCI function: wanted the one that was handed over, found another one"},
		"to a userspace driver":     {func(n *node) { n.tree.Bind(address, "vfio-pci") }, Replaced, "driver: wanted igbvf, found vfio-pci"},
		"from its driver":           {func(n *node) { n.tree.Bind(address, "") }, Replaced, "driver: wanted igbvf, found none"},
		"into the host, newly made": {func(n *node) { n.tree.AddNetDev(address, sriovtest.NetDev{Name: "new"}) }, Replaced, "network device new: wanted in the sandbox, found on the host"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.sandbox("app", true)
			n.tree.RemoveNetDev(netDev)
			n.finds()
			tc.end(n)
			f := n.finds(tc.kind)[0]
			if !strings.Contains(f.Text, tc.text) || f.Pod != "shop/app" || f.PodUID != "app-uid" || f.Network != "shop/fast" || f.PF != pf || f.VFIndex != index {
				t.Errorf("found %+v, want %q", f, tc.text)
			}
			if err := n.Repair(t.Context(), f); !errors.Is(err, ErrNotRepaired) {
				t.Errorf("repair: %v", err)
			}
			if n.quarantined() != nil {
				t.Errorf("in quarantine: %+v", n.quarantined())
			}
		})
	}
}

// A DEL that resets the VF after a scan has read the pod's journal causes no finding:
// each step of the DEL shows in the journal, and so does the removal of the journal.
func TestScanThatMeetsADEL(t *testing.T) {
	const vlan = 5
	for name, tc := range map[string]struct {
		phases []journal.Phase
		gone   bool
		kinds  []Kind
	}{
		"no DEL":       {kinds: []Kind{Drifted}},
		"releasing":    {phases: []journal.Phase{journal.Releasing}},
		"released":     {phases: []journal.Phase{journal.Releasing, journal.Released}},
		"journal gone": {gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			id := vlan
			n.want = &plan.VF{VLAN: &id}
			key := n.sandbox("app", true)
			n.vlan(vlan)
			n.tree.RemoveNetDev(netDev)
			n.finds()
			n.allocate(address)
			kubelets := n.Allocated
			n.Allocated = func(ctx context.Context) (*Allocated, error) { // between the journals and the PFs
				entry, err := n.Journal.Open(key)
				n.must(err)
				for _, p := range tc.phases {
					n.must(entry.Append(journal.Step{Phase: p}))
				}
				if tc.gone {
					n.must(entry.Close())
				}
				n.vlan(0)
				return kubelets(ctx)
			}
			n.finds(tc.kinds...)
		})
	}
}

// A VF created anew in place of a dead sandbox's is left alone, and so is an empty place.
func TestVFMadeAnewIsNotRepaired(t *testing.T) {
	n := newNode(t)
	n.sandbox("dead", false)
	n.again()
	n.vlan(77)
	n.spared(n.finds(Stranded)[0], "it was created anew")
	n.tree.Remove(address)
	f := n.finds(Stranded)[0]
	if err := n.Repair(t.Context(), f); !errors.Is(err, ErrNotRepaired) || !strings.Contains(f.Text, "no longer has the VF") {
		t.Errorf("%s: %v", f, err)
	}
}

// A network device that is back on the host as it was before ADD means that the pod lost
// its VF only if verification saw the sandbox's interface on it.
func TestNetworkDeviceThatIsBackUnderAPod(t *testing.T) {
	for name, tc := range map[string]struct {
		checked []string
		kinds   []Kind
	}{
		"moved": {[]string{"interface net1", "parent device"}, []Kind{Replaced}}, "not looked at": {},
		"stacked on": {checked: []string{"interface net1", "stacked on network device " + netDev + " of the allocated device"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.sandbox("app", true, tc.checked...)
			for _, f := range n.finds(tc.kinds...) {
				if want := "network device " + netDev + ": wanted in the sandbox, found on the host"; !strings.Contains(f.Text, want) {
					t.Errorf("found %s, want %q", f, want)
				}
			}
		})
	}
}

// An ADD that comes while a VF is being reset finds it claimed by a holder that cannot be
// dead, and is told to try again.
func TestADDWaitsForARepair(t *testing.T) {
	n := newNode(t)
	add := journal.Key{ContainerID: "new", IfName: "eth0"}
	claim := func() journal.Key {
		holder, err := n.Journal.Claim(t.Context(), address, add, func(k journal.Key) (bool, error) {
			lock, err := n.Journal.TryLock(k)
			if lock == nil {
				return true, err
			}
			return false, lock.Unlock(true)
		})
		n.must(err)
		return holder
	}
	n.must(n.claimed(t.Context(), Finding{Device: address}, func() error {
		if holder := claim(); holder != journal.RepairKey(address) {
			t.Errorf("%s has a VF that is being reset", holder)
		}
		return nil
	}))
	if holder := claim(); holder != add {
		t.Errorf("afterwards %s has it", holder)
	}
}

// The sandbox that has taken a VF over is its owner, even if the clock was set back since
// the dead sandbox's ADD.
func TestOwnerWhenTheClockWasSetBack(t *testing.T) {
	n := newNode(t)
	old := n.sandbox("old", false)
	path := filepath.Join(n.Journal.Path, old.String()+".journal")
	raw, err := os.ReadFile(path)
	n.must(err)
	header, steps, _ := strings.Cut(string(raw), "\n")
	var record map[string]any
	n.must(json.Unmarshal([]byte(header[9:]), &record))
	record["created"] = time.Now().Add(8 * time.Hour)
	body, err := json.Marshal(record)
	n.must(err)
	sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
	n.must(os.WriteFile(path, fmt.Appendf(nil, "%08x %s\n%s", sum, body, steps), 0o600))
	n.finds(Stranded)
	n.sandbox("new", true)
	n.finds()
}
