package rtnl_test

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/harness"
)

// A pod with NET_ADMIN cannot keep a socket in its network namespace from getting the
// kernel's answers by sending messages to the socket.
func TestCrowdedSocket(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	if err := netlink.SetSocketTimeout(time.Second); err != nil {
		t.Fatal(err)
	}
	socket := open(t)
	for range 2 {
		if link, err := socket.Link("lo"); err != nil || link == nil {
			t.Fatalf("got %v, %v", link, err)
		}
		if err := harness.Crowd(); err != nil {
			t.Fatal(err)
		}
	}
}
