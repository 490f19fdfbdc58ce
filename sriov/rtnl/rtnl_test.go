package rtnl_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov/rtnl"
	"github.com/manifold-cni/manifold/test/harness"
)

// open opens a socket for a test.
func open(t *testing.T) *rtnl.Socket {
	t.Helper()
	socket, err := rtnl.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// A network device with as many alternative names as the kernel allows is returned with
// all of them, both alone and in a list.
func TestManyNames(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	names, err := harness.AddManyNames("veth7")
	if err != nil {
		t.Fatal(err)
	}
	socket := open(t)
	links, err := socket.Links()
	if err != nil || len(links) != 3 {
		t.Fatalf("%d links, want lo and two: %v", len(links), err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == "veth7" })
	if i < 0 || len(links[i].Attrs().AltNames) != names {
		t.Fatalf("link %d of %v, want one with %d names", i, links, names)
	}
	for _, name := range append(links[i].Attrs().AltNames[:1], "veth7") {
		if l, err := socket.Link(name); err != nil || l == nil || l.Attrs().Index != links[i].Attrs().Index {
			t.Errorf("by the name %s: %v, %v", name, l, err)
		}
	}
}

// Any name that a delegate may give to an interface either exists or does not; none is
// an error.
func TestNoSuchLink(t *testing.T) {
	socket := open(t)
	for _, name := range []string{"nosuchdevice7", "", "lo\x00", strings.Repeat("x", 127), strings.Repeat("x", 1<<16+8)} {
		if l, err := socket.Link(name); l != nil || err != nil {
			t.Errorf("by a name of %d bytes, which none has: %v, %v", len(name), l, err)
		}
	}
}

// The error of a refused request is the kernel's.
func TestRefusal(t *testing.T) {
	if bodies, err := rtnl.Execute(rtnl.Named("nosuchdevice7", 0)); !errors.Is(err, unix.ENODEV) || bodies != nil {
		t.Errorf("%d answers, %v", len(bodies), err)
	}
}
