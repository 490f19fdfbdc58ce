package sriov_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// VFs of [sriovtest.Tree.AddMLX5InfiniBand], and the first VF's own GUID.
const (
	ibUplink = "ibp59s0f0"
	ibVF     = "0000:3b:00.2"
	ibVFIO   = "0000:3b:00.3"
	ownGUID  = "b8:59:9f:03:00:a4:3e:7c"
)

// GUIDs: an assigned one, the one that means "never assigned", and the one that takes a
// VF's GUID away.
const guid, noGUID, takenGUID = "c2:11:22:33:44:55:66:77", "00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff"

// ipoib returns the address of a network device with this GUID.
func ipoib(guid string) string { return "00:00:02:08:fe:80:00:00:00:00:00:00:" + guid }

// infiniband returns a machine with that adapter.
func infiniband(t *testing.T) (*sriovtest.Tree, sriov.Host) {
	t.Helper()
	tree := build(t, (*sriovtest.Tree).AddMLX5InfiniBand)
	return tree, tree.Host()
}

// setGUIDs sets the GUIDs of the VF at index through the PF.
func setGUIDs(t *testing.T, host sriov.Host, index int, node, port string) {
	t.Helper()
	to := sriov.VFState{NodeGUID: node, PortGUID: port}
	for _, p := range []sriov.Property{sriov.PropertyNodeGUID, sriov.PropertyPortGUID} {
		if err := host.Links.SetVF(ibUplink, index, p, to); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameMAC(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{own, own, true},
		{own, given, false},
		{ipoib(guid), ipoib(ownGUID), false},
		{ipoib(guid), "80:00:10:2a:fe:c0:00:00:00:00:00:01:" + guid, true},
		{ipoib(guid), guid, false}, // a GUID is not the address of a network device
		{"", "", true},
		{"", ipoib(guid), false},
	} {
		if sriov.SameMAC(tc.a, tc.b) != tc.same || sriov.SameMAC(tc.b, tc.a) != tc.same {
			t.Errorf("%q and %q are the same: %t, want %t", tc.a, tc.b, !tc.same, tc.same)
		}
	}
}

func TestCompareInfiniBand(t *testing.T) {
	address := func(b, n *sriov.Snapshot, was, is string) {
		b.NetDevs[0].MAC, n.NetDevs[0].MAC = ipoib(was), ipoib(is)
	}
	compare(t, map[string]comparison{
		"a queue pair": {func(b, n *sriov.Snapshot) {
			address(b, n, ownGUID, ownGUID)
			n.NetDevs[0].MAC = "80" + strings.Replace(n.NetDevs[0].MAC[2:], "02:08", "10:2a", 1)
		}, nil},
		"the PF's address, where it was not known to be none of the VF": {func(b, n *sriov.Snapshot) { b.VF.MAC, n.VF.MAC = "00:00:10:29:fe:80", "" }, nil},
		"GUIDs": {func(b, n *sriov.Snapshot) {
			b.VF.NodeGUID, b.VF.PortGUID, n.VF.NodeGUID, n.VF.PortGUID = guid, guid, noGUID, ""
		},
			[]string{"node GUID of the VF: wanted " + guid + ", found " + noGUID, "port GUID of the VF: wanted " + guid + ", found none"}},
		"a GUID that was given": {func(b, n *sriov.Snapshot) { b.VF.PortGUID, n.VF.PortGUID = noGUID, guid },
			[]string{"port GUID of the VF: wanted " + noGUID + ", found " + guid}},
		"a GUID that was not told of":                           {func(_, n *sriov.Snapshot) { n.VF.NodeGUID = guid }, nil},
		"none, in two ways, where its own is not known":         {func(b, n *sriov.Snapshot) { b.VF.NodeGUID, n.VF.NodeGUID = noGUID, takenGUID }, nil},
		"none, in two ways, where it was to have none":          {func(b, n *sriov.Snapshot) { b.VF.NodeGUID, n.VF.NodeGUID = takenGUID, noGUID }, nil},
		"its own GUID, where it was given none":                 {guids(noGUID, ownGUID), nil},
		"its own GUID, where it was given another":              {guids(guid, ownGUID), []string{"port GUID of the VF: wanted " + guid + ", found " + ownGUID}},
		"its own GUID, where it was to have none":               {guids(takenGUID, ownGUID), []string{"port GUID of the VF: wanted " + takenGUID + ", found " + ownGUID}},
		"another's GUID, where it was given none":               {guids(noGUID, guid), []string{"port GUID of the VF: wanted " + noGUID + ", found " + guid}},
		"none any more, where it was given none, and had one":   {guids(noGUID, takenGUID), []string{"port GUID of the VF: wanted " + noGUID + ", found " + takenGUID}},
		"the network device has another, that was not given it": {devices(noGUID, noGUID, guid), []string{"GUID of enp1: wanted " + ownGUID + ", found " + guid}},
		"the network device has the one that its PF gives":      {devices(guid, guid, guid), nil},
		"the network device has another, and the PF too": {devices(noGUID, guid, guid),
			[]string{"port GUID of the VF: wanted " + noGUID + ", found " + guid}},
		"the network device has another, and GUIDs are not told": {devices("", "", guid), nil},
		"the network device has another, and no PF is seen": {func(b, n *sriov.Snapshot) {
			address(b, n, ownGUID, guid)
			b.VF, n.VF = nil, nil
		}, nil},
	})
}

// guids changes a VF's port GUID on its PF from was to is. The VF's network device has
// its own.
func guids(was, is string) func(b, n *sriov.Snapshot) {
	return func(b, n *sriov.Snapshot) {
		b.NetDevs[0].MAC, n.NetDevs[0].MAC = ipoib(ownGUID), ipoib(ownGUID)
		b.VF.PortGUID, n.VF.PortGUID = was, is
	}
}

// devices changes the PF's GUID as guids does, and the GUID of the network device from
// its own to device.
func devices(was, is, device string) func(b, n *sriov.Snapshot) {
	return func(b, n *sriov.Snapshot) {
		guids(was, is)(b, n)
		n.NetDevs[0].MAC = ipoib(device)
	}
}

// Reset restores each GUID of a VF separately, and names one that its driver refuses. A
// PF that had assigned none cannot go back to that. Reset then assigns the VF's own
// GUID, or, if that is unknown, the GUID that means none; but never all zeros.
func TestResetOfGUIDs(t *testing.T) {
	for name, tc := range map[string]struct {
		vf    string
		index int
		own   string // the GUID of its network device
		unset string
	}{
		"its own":                 {ibVF, 0, ownGUID, ownGUID},
		"its own is none":         {ibVF, 0, noGUID, takenGUID},
		"its own cannot be known": {ibVFIO, 1, "", takenGUID},
	} {
		t.Run(name, func(t *testing.T) {
			tree, host := infiniband(t)
			if tc.own != "" {
				giveGUID(t, host, tc.own)
			}
			setGUIDs(t, host, tc.index, noGUID, guid)
			before := must(host.Snapshot(tc.vf))(t)
			setGUIDs(t, host, tc.index, guid, noGUID)
			if changed := must(host.Reset(tc.vf, before))(t); len(changed) != 2 {
				t.Errorf("changed %v", changed)
			}
			if now := must(host.Snapshot(tc.vf))(t).VF; now.NodeGUID != tc.unset || now.PortGUID != guid {
				t.Errorf("reset to %+v, was %+v", now, before.VF)
			}
			if changed := must(host.Reset(tc.vf, before))(t); len(changed) > 0 {
				t.Errorf("changed again: %v", changed)
			}
			setGUIDs(t, host, tc.index, guid, noGUID)
			refusal := errors.New("operation not supported")
			tree.Refuse(tc.vf, sriov.PropertyNodeGUID, refusal)
			var left *sriov.ResetError
			if _, err := host.Reset(tc.vf, before); !errors.As(err, &left) || !errors.Is(err, refusal) || len(left.Left) != 1 || left.Left[0].Field != "node GUID of the VF" {
				t.Errorf("refused: %v", err)
			}
		})
	}
}

// giveGUID sets the GUID of the VF's network device, as its administrator can.
func giveGUID(t *testing.T, host sriov.Host, guid string) {
	t.Helper()
	to := must(host.Snapshot(ibVF))(t).NetDevs[0]
	to.MAC = ipoib(guid)
	if err := host.Links.SetNetDev(to.Name, to); err != nil {
		t.Fatal(err)
	}
}

// An InfiniBand VF has no MAC: its PF's driver neither reports nor accepts one, even if
// an older snapshot has a MAC.
func TestInfiniBandVFHasNoMAC(t *testing.T) {
	_, host := infiniband(t)
	if err := host.Links.SetVF(ibUplink, 1, sriov.PropertyMAC, sriov.VFState{MAC: own}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatalf("its driver takes a MAC: %v", err)
	}
	for _, vf := range []string{ibVF, ibVFIO} {
		before := must(host.Snapshot(vf))(t)
		if before.VF.MAC != "" {
			t.Errorf("%s has MAC %s", vf, before.VF.MAC)
		}
		before.VF.MAC = "00:00:10:29:fe:80"
		if err := host.Links.SetVF(ibUplink, before.VFIndex, sriov.PropertyLinkState, sriov.VFState{LinkState: "enable"}); err != nil {
			t.Fatal(err)
		}
		if changed := must(host.Reset(vf, before))(t); len(changed) != 1 || changed[0].Field != "link state of the VF" {
			t.Errorf("%s: changed %v", vf, changed)
		}
	}
}

// An InfiniBand VF whose link is down, as after its creation, counts as unused.
func TestNeutralInfiniBandVF(t *testing.T) {
	_, host := infiniband(t)
	for _, state := range []string{"auto", "disable"} {
		if err := host.SetVF(ibUplink, 1, sriov.PropertyLinkState, sriov.VFState{LinkState: state}); err != nil {
			t.Fatal(err)
		}
		now := must(host.Snapshot(ibVFIO))(t)
		if left := now.Neutral().Compare(now); len(left) > 0 {
			t.Errorf("link state %s: %v", state, left)
		}
	}
}

// Reset restores the GUID that a pod changed on a network device, and keeps the part of
// the address that the driver generated anew. If the PF now assigns the GUID, the
// device keeps it.
func TestResetOfAnInfiniBandNetDev(t *testing.T) {
	tree, host := infiniband(t)
	before := must(host.Snapshot(ibVF))(t)
	was := before.NetDevs[0]
	const begin = "80:00:77:77:fe:80:00:00:00:00:00:01:"
	tree.RemoveNetDev(was.Name)
	tree.AddNetDev(ibVF, sriovtest.NetDev{Name: "net1", MAC: begin + guid})
	if changed := must(host.Reset(ibVF, before))(t); len(changed) != 2 {
		t.Errorf("changed %v, want name and GUID", changed)
	}
	if now := must(host.Snapshot(ibVF))(t).NetDevs[0]; now.Name != was.Name || now.MAC != begin+ownGUID {
		t.Errorf("reset to %+v, was %+v", now, was)
	}
	setGUIDs(t, host, 0, guid, guid)
	tree.RemoveNetDev(was.Name)
	tree.AddNetDev(ibVF, sriovtest.NetDev{Name: "net1", MAC: begin + guid})
	must(host.Reset(ibVF, before))(t)
	now := must(host.Snapshot(ibVF))(t)
	if now.NetDevs[0].Name != was.Name || now.NetDevs[0].MAC != begin+guid || now.VF.PortGUID != ownGUID {
		t.Errorf("reset to %+v %+v", now.NetDevs[0], now.VF)
	}
}

// untouched fails the test when a network device is changed.
type untouched struct {
	sriov.Links
	t *testing.T
}

// SetNetDev implements [sriov.Links].
func (u untouched) SetNetDev(name string, _ sriov.NetDev) error {
	u.t.Errorf("network device %s is set, and down meanwhile", name)
	return nil
}

// A network device that its driver recreated equals the old one if only the part of its
// address that does not belong to the function differs.
func TestResetLeavesAnotherQueuePairAlone(t *testing.T) {
	tree, host := infiniband(t)
	before := must(host.Snapshot(ibVF))(t)
	tree.RemoveNetDev(before.NetDevs[0].Name)
	tree.AddNetDev(ibVF, sriovtest.NetDev{Name: before.NetDevs[0].Name, MAC: ipoib(ownGUID)})
	setGUIDs(t, host, 0, guid, noGUID)
	host.Links = untouched{host.Links, t}
	if changed := must(host.Reset(ibVF, before))(t); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
}
