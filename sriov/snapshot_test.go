package sriov_test

import (
	"context"
	"errors"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

const (
	igbVF   = "0000:21:10.4" // VF 2 of enp33s0, enp33s16f4
	vfIndex = 2
)

// machine returns the lab's machine as a tree.
func machine(t *testing.T) (*sriovtest.Tree, sriov.Host) {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	t.Cleanup(func() {
		if err := tree.Err(); err != nil {
			t.Error(err)
		}
	})
	return tree, tree.Host()
}

// must returns v, and fails the test if there is an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// stands fails the test unless the device's state is want. The indexes and MACs of
// network devices, which the tree generates, must be set but are not compared.
func stands(t *testing.T, host sriov.Host, id string, want sriov.Snapshot) {
	t.Helper()
	got := must(host.Snapshot(id))(t)
	for i, d := range got.NetDevs {
		if d.Index == 0 || d.MAC == "" || d.Settings == nil {
			t.Errorf("%s: %+v", id, d)
		}
		got.NetDevs[i].Index, got.NetDevs[i].MAC, got.NetDevs[i].Settings = 0, "", nil
	}
	if sriov.IsAddress(id) != (got.Instance != 0) {
		t.Errorf("%s: instance %d", id, got.Instance)
	}
	got.Instance = 0
	if !reflect.DeepEqual(got, &want) {
		t.Errorf("%s: %+v, want %+v", id, got, want)
	}
}

func TestSnapshot(t *testing.T) {
	tree, host := machine(t)
	devices := func(name string) []sriov.NetDev { return []sriov.NetDev{{Name: name, MTU: 1500}} }
	state := &sriov.VFState{MAC: "00:00:00:00:00:00", VLANProto: "802.1q", SpoofChk: true, LinkState: "auto"}
	vf := sriov.Snapshot{NetDevs: devices("enp33s16f4"), Driver: "igbvf", PF: "enp33s0", VFIndex: vfIndex, VF: state}
	stands(t, host, igbVF, vf)
	stands(t, host, "0000:21:00.0", sriov.Snapshot{NetDevs: devices("enp33s0"), Driver: "igb", VFIndex: -1})
	tree.RemoveNetDev("enp33s16f4") // to another network namespace
	vf.NetDevs = nil
	stands(t, host, igbVF, vf)
	tree.RemoveNetDev("enp33s0") // nobody can be asked
	vf.PF, vf.VF = "", nil
	stands(t, host, igbVF, vf)
	tree.AddNetDev("", sriovtest.NetDev{Name: "macvtap0"})
	stands(t, host, "macvtap0", sriov.Snapshot{NetDevs: devices("macvtap0"), VFIndex: -1})
	tree.AddAuxiliary(sriovtest.Auxiliary{ID: "mlx5_core.sf.2", Parent: "0000:41:00.0", Driver: "mlx5_core.sf", NetDev: "en8s88"})
	stands(t, host, "mlx5_core.sf.2", sriov.Snapshot{NetDevs: devices("en8s88"), Driver: "mlx5_core.sf", VFIndex: -1})
	for _, absent := range []string{"0000:99:00.0", "mlx5_core.sf.9", "eth9", "", "../../etc"} {
		if s, err := host.Snapshot(absent); s != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %+v, %v", absent, s, err)
		}
	}
}

// asked counts the queries about network devices.
type asked struct {
	sriov.Links
	names map[string]int
}

// Link implements [sriov.Links].
func (a asked) Link(name string) (*sriov.Link, error) {
	a.names[name]++
	return a.Links.Link(name)
}

// Snapshots asks each PF once for many functions, and gives the same result as Snapshot
// for each.
func TestSnapshots(t *testing.T) {
	tree, host := machine(t)
	var functions []sriov.Function
	want := map[string]*sriov.Snapshot{}
	for _, pf := range []string{"0000:21:00.0", "0000:41:00.0"} {
		for _, addr := range append([]string{pf}, must(host.Function(pf))(t).VFs...) {
			functions = append(functions, *must(host.Function(addr))(t))
			want[addr] = must(host.Snapshot(addr))(t)
		}
	}
	counted := asked{host.Links, map[string]int{}}
	got := must(sriov.Host{FS: host.FS, Links: counted}.Snapshots(functions))(t)
	if !reflect.DeepEqual(got, want) || len(got) != 16 {
		t.Errorf("%v, want %v", got, want)
	}
	for _, uplink := range []string{"enp33s0", "enp65s0"} {
		if counted.names[uplink] != 2 { // as a PF, and as a network device itself
			t.Errorf("%s was asked for %d times for 8 functions, want twice", uplink, counted.names[uplink])
		}
	}
	// A function that cannot be read does not keep others from being read.
	tree.AddNetDev("0000:21:00.0", sriovtest.NetDev{Name: "twin"})
	got, err := host.Snapshots(functions)
	if err == nil || !strings.Contains(err.Error(), igbVF) || got[igbVF] != nil || got["0000:41:10.4"] == nil {
		t.Errorf("with a PF of two uplinks: %d functions, %v", len(got), err)
	}
}

// If sysfs and netlink are of two network namespaces, the PF cannot be asked. That must
// not be taken for an absent VF.
func TestSnapshotOfTwoNamespaces(t *testing.T) {
	tree, _ := machine(t)
	elsewhere := sriovtest.New(t.TempDir())
	host := sriov.Host{FS: tree.FS(), Links: elsewhere.Host().Links}
	if _, err := host.Snapshot(igbVF); !errors.Is(err, sriov.ErrNoLink) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want ErrNoLink alone", err)
	}
}

// Snapshot asks again about a VF that its PF omits, and does not take it for a VF for
// which the PF keeps nothing.
func TestOmittedVF(t *testing.T) {
	tree, host := machine(t)
	want := must(host.Snapshot(igbVF))(t)
	tree.Omit(igbVF, 2)
	if got := must(host.Snapshot(igbVF))(t); !reflect.DeepEqual(got, want) {
		t.Errorf("left out twice: %+v, want %+v", got, want)
	}
	tree.Omit(igbVF, -1)
	if got, err := host.Snapshot(igbVF); !errors.Is(err, sriov.ErrOmitted) {
		t.Errorf("left out for ever: %+v, %v", got, err)
	}
	f, other := *must(host.Function(igbVF))(t), *must(host.Function("0000:21:10.2"))(t)
	got, err := host.Snapshots([]sriov.Function{f, other})
	if !errors.Is(err, sriov.ErrOmitted) || got[igbVF] != nil || got[other.Address].VF == nil {
		t.Errorf("among others: %v, %v", got, err)
	}
	// A driver that omits every VF may do so forever: the snapshot has no VF state.
	for _, vf := range must(host.Function("0000:21:00.0"))(t).VFs {
		tree.Omit(vf, -1)
	}
	for id, got := range map[string]*sriov.Snapshot{"alone": must(host.Snapshot(igbVF))(t), "among others": must(host.Snapshots([]sriov.Function{f}))(t)[igbVF]} {
		if got.PF != "enp33s0" || got.VF != nil || len(got.NetDevs) != 1 {
			t.Errorf("%s, of a PF that says nothing: %+v", id, got)
		}
		if left := want.Compare(got); len(left) != 1 {
			t.Errorf("%s: differs in %v, want what the PF keeps", id, left)
		}
	}
}

// slow wraps network devices whose driver waits before each answer.
type slow struct{ sriov.Links }

func (l slow) Link(name string) (*sriov.Link, error) {
	time.Sleep(800 * time.Millisecond)
	return l.Links.Link(name)
}

// A driver that waits itself is asked less often.
func TestOmittedVFOfASlowDriver(t *testing.T) {
	tree, host := machine(t)
	tree.Omit(igbVF, -1)
	host.Links = slow{host.Links}
	synctest.Test(t, func(t *testing.T) { // where time passes only in sleep
		start := time.Now()
		if _, err := host.Snapshot(igbVF); !errors.Is(err, sriov.ErrOmitted) || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// own is the MAC of the VF's network device in comparisons, and given a MAC from its
// PF.
const own, given = "02:00:00:00:00:01", "02:00:00:00:00:02"

// comparison is a change of a VF and the differences that it causes.
type comparison struct {
	change func(before, now *sriov.Snapshot)
	want   []string
}

// compare applies each change to a VF that has a network device and whose PF answers.
func compare(t *testing.T, cases map[string]comparison) {
	t.Helper()
	was := func() *sriov.Snapshot {
		return &sriov.Snapshot{
			Driver: "igbvf", NetDevs: []sriov.NetDev{{Name: "enp1", Index: 7, MAC: own, MTU: 1500}},
			VF: &sriov.VFState{MAC: "00:00:00:00:00:00", SpoofChk: true, LinkState: "auto", VLANProto: "802.1q"},
		}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before, now := was(), was()
			tc.change(before, now)
			var got []string
			for _, d := range before.Compare(now) {
				got = append(got, d.String())
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	compare(t, map[string]comparison{
		"nothing":                        {func(_, _ *sriov.Snapshot) {}, nil},
		"another index, which is normal": {func(_, n *sriov.Snapshot) { n.NetDevs[0].Index = 9 }, nil},
		"the VF told the PF its MAC":     {func(_, n *sriov.Snapshot) { n.VF.MAC = own }, nil},
		"the PF gave it another":         {func(_, n *sriov.Snapshot) { n.VF.MAC = given }, []string{"MAC of the VF: wanted 00:00:00:00:00:00, found " + given}},
		"the PF's MAC is gone":           {func(b, n *sriov.Snapshot) { b.VF.MAC = given }, []string{"MAC of the VF: wanted " + given + ", found 00:00:00:00:00:00"}},
		"the VF lost the PF's MAC": {func(b, n *sriov.Snapshot) { b.VF.MAC, n.VF.MAC = own, own; n.NetDevs[0].MAC = given },
			[]string{"MAC of enp1: wanted " + own + ", found " + given}},
		"the VF has another, the PF gave it none": {func(_, n *sriov.Snapshot) { n.NetDevs[0].MAC = given }, []string{"MAC of enp1: wanted " + own + ", found " + given}},
		"the VF has another, the PF was told its own": {func(_, n *sriov.Snapshot) { n.VF.MAC, n.NetDevs[0].MAC = own, given },
			[]string{"MAC of enp1: wanted " + own + ", found " + given}},
		"the VF has another, the PF says nothing": {func(b, n *sriov.Snapshot) { b.VF, n.VF, n.NetDevs[0].MAC = nil, nil, given },
			[]string{"MAC of enp1: wanted " + own + ", found " + given}},
		"the VF took over the PF's MAC": {func(b, n *sriov.Snapshot) { b.VF.MAC, n.VF.MAC, n.NetDevs[0].MAC = given, given, given }, nil},
		"VLAN, QoS":                     {func(_, n *sriov.Snapshot) { n.VF.VLAN, n.VF.VLANQoS = 5, 2 }, []string{"VLAN of the VF: wanted 0, found 5", "VLAN QoS of the VF: wanted 0, found 2"}},
		"protocol without a VLAN":       {func(_, n *sriov.Snapshot) { n.VF.VLANProto = "802.1ad" }, nil},
		"protocol": {func(b, n *sriov.Snapshot) { b.VF.VLAN, n.VF.VLAN, n.VF.VLANProto = 5, 5, "802.1ad" },
			[]string{"VLAN protocol of the VF: wanted 802.1q, found 802.1ad"}},
		"flags": {func(_, n *sriov.Snapshot) { n.VF.SpoofChk, n.VF.Trust, n.VF.LinkState = false, true, "enable" },
			[]string{"spoof check of the VF: wanted on, found off", "trust of the VF: wanted off, found on", "link state of the VF: wanted auto, found enable"}},
		"rates": {func(_, n *sriov.Snapshot) { n.VF.MinTxRate, n.VF.MaxTxRate = 1, 2 },
			[]string{"minimum rate of the VF: wanted 0, found 1", "maximum rate of the VF: wanted 0, found 2"}},
		"no PF to ask": {func(_, n *sriov.Snapshot) { n.VF = nil },
			[]string{"state of the VF on its PF: wanted known, found unknown, because the PF has no network device here"}},
		"no answer of the PF": {func(_, n *sriov.Snapshot) { n.VF, n.PF = nil, "enp1s0" },
			[]string{"state of the VF on its PF: wanted known, found unknown, because enp1s0 does not report it"}},
		"nothing was known of the PF": {func(b, _ *sriov.Snapshot) { b.VF = nil }, nil},
	})
}

func TestCompareNetDevs(t *testing.T) {
	compare(t, map[string]comparison{
		"network device": {func(_, n *sriov.Snapshot) {
			n.NetDevs[0] = sriov.NetDev{Name: "net1", MAC: own, MTU: 9000, Alias: "enp1"}
		},
			[]string{"network device: wanted enp1, found net1", "alias of enp1: wanted none, found enp1", "MTU of enp1: wanted 1500, found 9000"}},
		"settings": {func(b, n *sriov.Snapshot) {
			b.NetDevs[0].Settings = &sriov.Settings{Flags: unix.IFF_MULTICAST, TxQueue: 1000}
			n.NetDevs[0].Settings = &sriov.Settings{AltNames: []string{"a", "b"}, Flags: unix.IFF_PROMISC | unix.IFF_NOARP, TxQueue: 7, Group: 9, XDP: []uint32{12}}
		}, []string{
			"alternative names of enp1: wanted none, found a b", "flag PROMISC of enp1: wanted off, found on", "flag NOARP of enp1: wanted off, found on",
			"flag MULTICAST of enp1: wanted on, found off", "transmit queue of enp1: wanted 1000, found 7", "group of enp1: wanted 0, found 9",
			"XDP program of enp1: wanted none, found 12",
		}},
		"an XDP program that is gone": {func(b, n *sriov.Snapshot) {
			b.NetDevs[0].Settings, n.NetDevs[0].Settings = &sriov.Settings{XDP: []uint32{12, 13}}, &sriov.Settings{XDP: []uint32{13}}
		}, nil},
		"another XDP program": {func(b, n *sriov.Snapshot) {
			b.NetDevs[0].Settings, n.NetDevs[0].Settings = &sriov.Settings{XDP: []uint32{12}}, &sriov.Settings{XDP: []uint32{14}}
		}, []string{"XDP program of enp1: wanted 12, found 14"}},
		"settings that were not taken down": {func(_, n *sriov.Snapshot) { n.NetDevs[0].Settings = &sriov.Settings{Group: 9} }, nil},
		"another driver":                    {func(_, n *sriov.Snapshot) { n.Driver, n.NetDevs = "vfio-pci", nil }, []string{"driver: wanted igbvf, found vfio-pci"}},
		"no driver":                         {func(_, n *sriov.Snapshot) { n.Driver, n.NetDevs = "", nil }, []string{"driver: wanted igbvf, found none"}},
		"away":                              {func(_, n *sriov.Snapshot) { n.NetDevs = nil }, []string{"network device: wanted enp1, found none"}},
	})
}

// use changes a VF as a pod and its delegate may leave it.
func use(t *testing.T, host sriov.Host) {
	t.Helper()
	dirty := sriov.VFState{
		MAC: "02:00:00:00:00:99", VLAN: 100, VLANQoS: 3, VLANProto: "802.1ad", Trust: true, LinkState: "enable", MinTxRate: 10, MaxTxRate: 200,
	}
	for _, p := range []sriov.Property{
		sriov.PropertyVLAN, sriov.PropertySpoofChk, sriov.PropertyTrust, sriov.PropertyLinkState, sriov.PropertyRate, sriov.PropertyMAC,
	} {
		if err := host.Links.SetVF("enp33s0", vfIndex, p, dirty); err != nil {
			t.Fatal(err)
		}
	}
	left := &sriov.Settings{AltNames: []string{"evil0"}, Flags: unix.IFF_PROMISC, TxQueue: 7, Group: 9, XDP: []uint32{1}}
	if err := host.Links.SetNetDev("enp33s16f4", sriov.NetDev{Name: "eth7", MAC: "02:00:00:00:00:99", MTU: 9000, Alias: "enp33s16f4", Settings: left}); err != nil {
		t.Fatal(err)
	}
}

func TestReset(t *testing.T) {
	_, host := machine(t)
	before := must(host.Snapshot(igbVF))(t)
	if changed, err := host.Reset(igbVF, before); len(changed) != 0 || err != nil {
		t.Errorf("what is as before: %v, %v", changed, err)
	}
	use(t, host)
	changed := must(host.Reset(igbVF, before))(t)
	if len(changed) != 17 {
		t.Errorf("%d changed: %v", len(changed), changed)
	}
	now := must(host.Snapshot(igbVF))(t)
	if !reflect.DeepEqual(now, before) {
		t.Errorf("reset to\n%+v %+v, was\n%+v %+v", now, now.VF, before, before.VF)
	}
	if _, err := host.Reset("0000:99:00.0", before); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a device that is gone: %v", err)
	}
}

// A VF gets its own MAC back after a pod changed it, if its PF gives it no MAC or
// reports nothing about it.
func TestResetOfTheVFsOwnMAC(t *testing.T) {
	for name, silent := range map[string]bool{"the PF gives none": false, "the PF says nothing": true} {
		t.Run(name, func(t *testing.T) {
			tree, host := machine(t)
			if silent {
				tree.RemoveNetDev("enp33s0")
			}
			before := must(host.Snapshot(igbVF))(t)
			if silent != (before.VF == nil) {
				t.Fatalf("%+v", before.VF)
			}
			changed := before.NetDevs[0]
			changed.MAC = "02:00:00:00:00:99"
			if err := host.Links.SetNetDev(changed.Name, changed); err != nil {
				t.Fatal(err)
			}
			if changed := must(host.Reset(igbVF, before))(t); len(changed) != 1 {
				t.Errorf("changed %v, want the MAC", changed)
			}
			if now := must(host.Snapshot(igbVF))(t); !reflect.DeepEqual(now, before) {
				t.Errorf("reset to %+v, was %+v", now, before)
			}
		})
	}
}

// If a VF's driver reports its MAC to the PF, Reset restores the VF's own MAC through
// the driver. Set by the PF, it would be a MAC that no later pod's plugin can change.
func TestResetLeavesTheVFTheChoiceOfItsMAC(t *testing.T) {
	tree, host := machine(t)
	tree.Tell(igbVF)
	own := must(host.Snapshot(igbVF))(t).NetDevs[0]
	choose := func(mac string) *sriov.Snapshot {
		t.Helper()
		to := own
		to.MAC = mac
		if err := host.Links.SetNetDev(own.Name, to); err != nil {
			t.Fatal(err)
		}
		s := must(host.Snapshot(igbVF))(t)
		if s.NetDevs[0].MAC != mac || s.VF.MAC != mac {
			t.Errorf("chose %s: %+v, %+v", mac, s.NetDevs[0], s.VF)
		}
		return s
	}
	before := choose(own.MAC) // it was up once before
	for _, mac := range []string{"02:00:00:00:07:01", "02:00:00:00:07:02"} {
		choose(mac)
		must(host.Reset(igbVF, before))(t)
		if now := must(host.Snapshot(igbVF))(t); !reflect.DeepEqual(now, before) {
			t.Errorf("reset to %+v %+v", now, now.VF)
		}
	}
	// A MAC that was set on the PF is reset on the PF.
	if err := host.Links.SetVF("enp33s0", vfIndex, sriov.PropertyMAC, sriov.VFState{MAC: "02:00:00:00:07:03"}); err != nil {
		t.Fatal(err)
	}
	must(host.Reset(igbVF, before))(t)
	if now := must(host.Snapshot(igbVF))(t); !reflect.DeepEqual(now, before) {
		t.Errorf("reset to %+v %+v", now, now.VF)
	}
}

// A property that a driver refuses does not keep the others from being reset.
func TestResetPastARefusal(t *testing.T) {
	tree, host := machine(t)
	before := must(host.Snapshot(igbVF))(t)
	use(t, host)
	tree.Refuse(igbVF, sriov.PropertyTrust, unix.EOPNOTSUPP)
	_, err := host.Reset(igbVF, before)
	var left *sriov.ResetError
	if !errors.As(err, &left) || !errors.Is(err, unix.EOPNOTSUPP) || len(left.Left) != 1 {
		t.Fatalf("%v, want the trust alone left", err)
	}
	for _, part := range []string{"trust of the VF: wanted off, found on", "trust of VF 2 on enp33s0", unix.EOPNOTSUPP.Error()} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	tree.Refuse(igbVF, sriov.PropertyTrust, nil)
	if changed := must(host.Reset(igbVF, before))(t); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
}

// hasty wraps network devices of which one gets its future name as an alternative name,
// as udev does, and therefore refuses the first change.
type hasty struct {
	sriov.Links
	tree    *sriovtest.Tree
	settled bool
}

func (l *hasty) SetNetDev(name string, to sriov.NetDev) error {
	if !l.settled {
		l.settled = true
		l.tree.AddAltName(name, to.Name)
		return unix.EEXIST
	}
	return l.Links.SetNetDev(name, to)
}

// A network device that comes back with its name from a pod gets its own name back,
// even if udev has just made that an alternative name.
func TestResetBesideUdev(t *testing.T) {
	tree, host := machine(t)
	before := must(host.Snapshot(igbVF))(t)
	tree.RenameNetDev(before.NetDevs[0].Name, "net1")
	host.Links = &hasty{Links: host.Links, tree: tree}
	must(host.Reset(igbVF, before))(t)
	if now := must(host.Snapshot(igbVF))(t); !reflect.DeepEqual(now, before) {
		t.Errorf("reset to %+v, was %+v", now, before)
	}
}

func TestNeutral(t *testing.T) {
	_, host := machine(t)
	use(t, host)
	s := must(host.Snapshot(igbVF))(t)
	want := sriov.VFState{MAC: s.VF.MAC, VLANProto: "802.1ad", Trust: true, LinkState: "auto"}
	if got := s.Neutral(); *got.VF != want || s.VF.VLAN != 100 {
		t.Errorf("%+v of %+v", got.VF, s.VF)
	}
	if got := (&sriov.Snapshot{}).Neutral(); got.VF != nil {
		t.Errorf("of no VF: %+v", got.VF)
	}
}

func TestWait(t *testing.T) {
	tree, host := machine(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	if s := must(host.Wait(ctx, igbVF, sriov.HasNetDev))(t); len(s.NetDevs) != 1 {
		t.Errorf("what is there already: %+v", s)
	}
	// Each step happens after the wait saw the previous one. Nothing passes by luck,
	// and a wait that is not woken never ends.
	steps := []func(){
		func() { tree.RemoveNetDev("enp33s16f4") },
		func() { tree.Bind(igbVF, "vfio-pci") },
		func() { tree.Bind(igbVF, "igbvf") },
		func() { tree.AddNetDev(igbVF, sriovtest.NetDev{Name: "enp33s16f4"}) },
	}
	drivers := map[string]bool{}
	s := must(host.Wait(ctx, igbVF, func(s *sriov.Snapshot) bool {
		if len(steps) > 0 {
			drivers[s.Driver] = true
			steps[0]()
			steps = steps[1:]
			return false
		}
		return sriov.HasNetDev(s)
	}))(t)
	if s.NetDevs[0].Name != "enp33s16f4" || !drivers["vfio-pci"] {
		t.Errorf("%+v, seen drivers %v", s, drivers)
	}
	tree.Remove(igbVF)
	if s, err := host.Wait(ctx, igbVF, func(s *sriov.Snapshot) bool { return s == nil }); s != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a device that went: %+v, %v", s, err)
	}
	reason := errors.New("the pod is gone")
	_, err := host.Wait(ctx, igbVF, func(s *sriov.Snapshot) bool {
		cancel(reason)
		return sriov.HasDriver("igbvf")(s)
	})
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), igbVF) {
		t.Errorf("waited in vain: %v", err)
	}
}

// silent receives no events.
type silent struct{ sriov.Links }

func (silent) Events(context.Context) (<-chan struct{}, error) {
	c := make(chan struct{})
	close(c)
	return c, nil
}

// A wait that no event could end any more fails.
func TestWaitWithoutEvents(t *testing.T) {
	_, host := machine(t)
	host.Links = silent{host.Links}
	if _, err := host.Wait(t.Context(), igbVF, sriov.HasDriver("vfio-pci")); err == nil || !strings.Contains(err.Error(), "can no longer be received") {
		t.Errorf("%v", err)
	}
}

// mute are network devices about which the kernel does not answer.
type mute struct{ sriov.Links }

func (mute) Link(string) (*sriov.Link, error) { return nil, unix.ENOBUFS }

// A network device about which the kernel does not answer does not count as gone.
func TestNoAnswerAboutANetworkDevice(t *testing.T) {
	_, host := machine(t)
	host.Links = mute{host.Links}
	if _, err := host.Snapshot("enp33s0"); !errors.Is(err, unix.ENOBUFS) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
