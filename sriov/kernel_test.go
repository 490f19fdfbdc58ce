package sriov_test

import (
	"context"
	"errors"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/rtnl"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestKernel queries the running kernel in a network namespace of its own. VFs need
// hardware, so the SR-IOV lab tests how their properties are set.
func TestKernel(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	if _, err := links.Link("veth7"); !errors.Is(err, sriov.ErrNoLink) {
		t.Errorf("a device that is not there: %v", err)
	}
	if err := links.SetNetDev("veth7", sriov.NetDev{}); !errors.Is(err, sriov.ErrNoLink) {
		t.Errorf("setting it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	events, err := links.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "veth7", 1400
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	<-events
	if err := netlink.LinkSetUp(must(netlink.LinkByName("veth7"))(t)); err != nil {
		t.Fatal(err)
	}
	want := sriov.NetDev{Name: "eth1", MAC: "02:00:00:00:00:07", MTU: 9000, Alias: "veth7"}
	if err := links.SetNetDev("veth7", want); err != nil {
		t.Fatal(err)
	}
	got := must(links.Link("eth1"))(t)
	want.Index, want.Settings = got.Index, got.Settings // another test compares these
	if got.NetDev != want || got.VFs != nil {
		t.Errorf("%+v, want %+v", got, want)
	}
	if must(netlink.LinkByName("eth1"))(t).Attrs().RawFlags&1 == 0 {
		t.Error("it was up, and is down")
	}
	if err := links.SetVF("eth1", 0, sriov.PropertyTrust, sriov.VFState{}); err == nil {
		t.Error("a VF was set on a device that has none")
	}
	s := must(sriov.Host{FS: sriov.FS{Root: t.TempDir()}}.Snapshot("eth1"))(t)
	if len(s.NetDevs) != 1 || !reflect.DeepEqual(s.NetDevs[0], want) {
		t.Errorf("snapshot %+v", s)
	}
	cancel()
	for range events { // drain until it is closed
	}
}

// Values that no network device and no VF can have are refused without asking the
// kernel.
func TestKernelIsNotAskedForWhatCannotBe(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	for p, to := range map[sriov.Property]sriov.VFState{
		sriov.PropertyVLAN: {VLAN: 7, VLANProto: "802.1AD"}, sriov.PropertyLinkState: {LinkState: "up"},
	} {
		if err := links.SetVF("lo", 0, p, to); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s of %+v: %v", p, to, err)
		}
	}
	for _, name := range []string{"", "veth\x007", strings.Repeat("x", 15), strings.Repeat("x", 127), strings.Repeat("x", 128), strings.Repeat("x", 1<<17)} {
		if _, err := links.Link(name); !errors.Is(err, sriov.ErrNoLink) {
			t.Errorf("a name of %d bytes: %v", len(name), err)
		}
	}
}

// addVeth7 adds the veth pair of "veth7" and "peer", and returns the former.
func addVeth7(t *testing.T) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "veth7"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	return must(netlink.LinkByName("veth7"))(t)
}

// Settings that a pod with NET_ADMIN may leave on a network device are detected and
// undone.
func TestKernelUndoesSettings(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	link := addVeth7(t)
	before := must(links.Link("veth7"))(t).NetDev
	fd := must(harness.LoadXDP())(t)
	if err := errors.Join(
		netlink.LinkSetUp(link), netlink.SetPromiscOn(link), netlink.LinkSetAllmulticastOn(link), netlink.LinkSetTxQLen(link, 7), netlink.LinkSetARPOff(link),
		netlink.LinkSetGroup(link, 9), netlink.LinkSetXdpFdWithFlags(link, fd, harness.XDPGeneric), unix.Close(fd),
		netlink.LinkSetDown(link), netlink.LinkSetName(link, "x0"), netlink.LinkAddAltName(link, "veth7"), netlink.LinkAddAltName(link, "evil0"),
	); err != nil {
		t.Fatal(err)
	}
	now := must(links.Link("x0"))(t).NetDev
	left := (&sriov.Snapshot{NetDevs: []sriov.NetDev{before}}).Compare(&sriov.Snapshot{NetDevs: []sriov.NetDev{now}})
	if len(left) != 8 || len(now.Settings.XDP) != 1 {
		t.Errorf("settings %+v: differ in %v, want eight", now.Settings, left)
	}
	if err := links.SetNetDev("x0", before); err != nil {
		t.Fatal(err)
	}
	if now := must(links.Link("veth7"))(t).NetDev; !reflect.DeepEqual(now, before) {
		t.Errorf("made %+v %+v, was %+v %+v", now, now.Settings, before, before.Settings)
	}
	// Settings that were there before and are missing now are restored, too.
	has := before
	settings := *before.Settings
	settings.AltNames, settings.Flags, settings.TxQueue, settings.Group = []string{"wan"}, unix.IFF_MULTICAST|unix.IFF_ALLMULTI, 500, 3
	has.Settings = &settings
	if err := links.SetNetDev("veth7", has); err != nil {
		t.Fatal(err)
	}
	if now := must(links.Link("wan"))(t).NetDev; !reflect.DeepEqual(now, has) {
		t.Errorf("made %+v, want %+v", now.Settings, has.Settings)
	}
}

// What a pod with NET_ADMIN may leave on a network device that redirects or slows the
// traffic of its next user is detected and undone, unless it was there before.
func TestKernelUndoesWhatHarmsTraffic(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	link := addVeth7(t)
	change := func(kind int, value []byte) error {
		_, err := rtnl.Execute(rtnl.Changed(link.Attrs().Index, nl.NewRtAttr(kind, value)))
		return err
	}
	before := must(links.Link("veth7"))(t).NetDev
	if err := errors.Join(
		change(unix.IFLA_BROADCAST, []byte{2, 0, 0, 0, 0, 0x99}), change(unix.IFLA_LINKMODE, []byte{1}),
		change(unix.IFLA_GSO_MAX_SIZE, nl.Uint32Attr(3000)), change(unix.IFLA_GSO_MAX_SEGS, nl.Uint32Attr(2)), change(unix.IFLA_GRO_MAX_SIZE, nl.Uint32Attr(2000)),
	); err != nil {
		t.Fatal(err)
	}
	used := must(links.Link("veth7"))(t).NetDev
	left := sriov.Sentences((&sriov.Snapshot{NetDevs: []sriov.NetDev{before}}).Compare(&sriov.Snapshot{NetDevs: []sriov.NetDev{used}}))
	for _, want := range []string{
		"broadcast address of veth7: wanted ff:ff:ff:ff:ff:ff, found 02:00:00:00:00:99", "link mode of veth7: wanted default, found dormant",
		"gso_max_size of veth7", "gso_max_segs of veth7: wanted 65535, found 2", "gro_max_size of veth7",
	} {
		if !strings.Contains(left, want) {
			t.Errorf("not found: %s; found: %s", want, left)
		}
	}
	for _, to := range []sriov.NetDev{before, used, before} {
		if err := links.SetNetDev("veth7", to); err != nil {
			t.Fatal(err)
		}
		if now := must(links.Link("veth7"))(t).NetDev; !reflect.DeepEqual(now, to) {
			t.Errorf("made %+v, want %+v", now.Settings, to.Settings)
		}
	}
	// A snapshot of an older version says nothing about them.
	older := before
	older.Settings = &sriov.Settings{Flags: before.Settings.Flags, TxQueue: before.Settings.TxQueue}
	used.Settings.LinkMode = 0 // the default, for which an older snapshot stands
	if left := (&sriov.Snapshot{NetDevs: []sriov.NetDev{older}}).Compare(&sriov.Snapshot{NetDevs: []sriov.NetDev{used}}); len(left) > 0 {
		t.Errorf("differs from a snapshot without them: %v", left)
	}
}

// An XDP program that a process holds by a BPF link is detached, and nothing else that
// the process holds: not another program, and not the same one on another device.
func TestKernelDetachesLinkedXDP(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	index := addVeth7(t).Attrs().Index
	before := must(links.Link("veth7"))(t).NetDev
	peer := must(netlink.LinkByName("peer"))(t).Attrs().Index
	for _, on := range []int{peer, index} {
		fd := must(harness.LoadXDP())(t)
		defer unix.Close(must(harness.LinkXDP(on, fd))(t))
		if on == index {
			defer unix.Close(must(harness.LinkXDP(1, fd))(t))
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	used := must(links.Link("veth7"))(t).NetDev
	if len(used.Settings.XDP) != 1 {
		t.Fatalf("programs %v, want one", used.Settings.XDP)
	}
	if err := links.SetNetDev("veth7", before); err != nil {
		t.Fatal(err)
	}
	if now := must(links.Link("veth7"))(t).NetDev; !reflect.DeepEqual(now, before) {
		t.Errorf("made %+v, was %+v", now.Settings, before.Settings)
	}
	for _, other := range []string{"peer", "lo"} {
		if now := must(links.Link(other))(t).NetDev; len(now.Settings.XDP) != 1 {
			t.Errorf("%s has programs %v, want the one that it had", other, now.Settings.XDP)
		}
	}
}

// TCX programs that a pod attached are detached, even if a process holds them by a BPF
// link; those that were there before stay.
func TestKernelDetachesTCX(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	var links sriov.Kernel
	index := addVeth7(t).Attrs().Index
	attach := func(direction uint32, link bool) {
		fd, err := harness.AttachTCX(index, direction, link)
		if errors.Is(err, unix.EINVAL) {
			t.Skip("this kernel has no TCX")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	attach(harness.TCXIngress, false)
	before := must(links.Link("veth7"))(t).NetDev
	attach(harness.TCXIngress, true)
	attach(harness.TCXEgress, false)
	used := must(links.Link("veth7"))(t).NetDev
	left := (&sriov.Snapshot{NetDevs: []sriov.NetDev{before}}).Compare(&sriov.Snapshot{NetDevs: []sriov.NetDev{used}})
	if len(before.Settings.TCX) != 1 || len(used.Settings.TCX) != 3 || len(left) != 1 {
		t.Fatalf("programs %v, then %v: differ in %v", before.Settings.TCX, used.Settings.TCX, left)
	}
	if err := links.SetNetDev("veth7", before); err != nil {
		t.Fatal(err)
	}
	if now := must(links.Link("veth7"))(t).NetDev; !reflect.DeepEqual(now, before) {
		t.Errorf("made %+v, was %+v", now.Settings, before.Settings)
	}
}

// A pod cannot make a network device unreadable.
func TestKernelUndoesManyNames(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	names := must(harness.AddManyNames("veth7"))(t)
	var links sriov.Kernel
	now := must(links.Link("veth7"))(t).NetDev
	if len(now.Settings.AltNames) != names {
		t.Errorf("%d alternative names, want %d", len(now.Settings.AltNames), names)
	}
	to := now
	settings := *now.Settings
	settings.AltNames = nil
	to.Settings = &settings
	if err := links.SetNetDev("veth7", to); err != nil {
		t.Fatal(err)
	}
	if now := must(links.Link("veth7"))(t).NetDev; !reflect.DeepEqual(now, to) {
		t.Errorf("made %+v, want %+v", now.Settings, to.Settings)
	}
}

// The answer about a network device is right while others come and go, which would
// interrupt a dump.
func TestKernelAnswersWhileDevicesChange(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	veth := func(name string) *netlink.Veth {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}
	}
	if err := netlink.LinkAdd(veth("stays")); err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() {
		for range 50 {
			if err := errors.Join(netlink.LinkAdd(veth("comes")), netlink.LinkDel(veth("comes"))); err != nil {
				changed <- err
				return
			}
		}
		changed <- nil
	}()
	for asked := 0; ; asked++ {
		link, err := sriov.Kernel{}.Link("stays")
		if err != nil || link.Name != "stays" || link.Index == 0 {
			t.Fatalf("question %d: %+v, %v", asked, link, err)
		}
		select {
		case err := <-changed:
			if err != nil || asked == 0 {
				t.Errorf("asked %d times, %v", asked, err)
			}
			return
		default:
		}
	}
}
