package verify

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/test/harness"
)

// The addresses of an interface are its own, in both families, whether a peer has
// another one or not. Those of other interfaces do not count, nor does what the pod
// sends to the sockets in its network namespace.
func TestAddresses(t *testing.T) {
	pod, must := newPod(t)
	want := []string{"10.0.0.2/24", "10.0.0.3/32", "2001:db8::2/64", "2001:db8::3/128"}
	add := func(name, address, peer string) error {
		addr, err := netlink.ParseAddr(address)
		if peer != "" && err == nil {
			addr.Peer, err = netlink.ParseIPNet(peer)
		}
		return errors.Join(err, netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}, addr))
	}
	must(pod.Do(func() error {
		err := errors.Join(addLink("net1"),
			add("net1", "10.0.0.2/24", ""), add("net1", "2001:db8::2/64", ""),
			add("net1", "10.0.0.3/32", "10.9.9.9/24"), add("net1", "2001:db8::3/128", "2001:db8:1::9/64"))
		for i := range 300 {
			err = errors.Join(err, add("net1peer", fmt.Sprintf("172.16.%d.%d/16", i/250, 1+i%250), ""))
		}
		return err
	}))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()
	for range 2 {
		f, err := Look(sriov.Host{}, box, &plan.Attachment{IfName: "net1"}, nil, nil)
		must(err)
		if slices.Sort(f.Interface.Addresses); !slices.Equal(f.Interface.Addresses, want) {
			t.Errorf("addresses %q, want %q", f.Interface.Addresses, want)
		}
		must(pod.Do(harness.Crowd))
	}
}
