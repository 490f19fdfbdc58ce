package sriov_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestKernel asks the running kernel, in a network namespace of the test's own.
// VFs need hardware: what is set on them is tested in the SR-IOV lab.
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
	want.Index = got.Index
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
	if len(s.NetDevs) != 1 || s.NetDevs[0] != want {
		t.Errorf("snapshot %+v", s)
	}
	cancel()
	for range events { // until it is closed
	}
}

// A network device is told rightly while others come and go, which would interrupt a
// dump.
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
