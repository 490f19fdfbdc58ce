package harness

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddManyNames adds a veth to the network namespace of the calling thread, with as many
// alternative names as the kernel allows, and returns how many: what the kernel says of
// it is then longer than the netlink library reads.
func AddManyNames(name string) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
		return 0, err
	}
	return ManyNames(name)
}

// ManyNames gives a link of the calling thread's network namespace as many alternative
// names as the kernel allows, and returns how many.
func ManyNames(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		err := netlink.LinkAddAltName(link, fmt.Sprintf("name%d", n)+strings.Repeat("x", 120))
		if errors.Is(err, unix.EINVAL) && n > 0 {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
