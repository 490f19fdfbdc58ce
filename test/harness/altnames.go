package harness

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddManyNames adds a veth pair to the network namespace of the calling thread and
// gives its first end as many alternative names as the kernel allows. It returns the
// number of names. The kernel's message about such a link is longer than the netlink
// library's read buffer.
func AddManyNames(name string) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
		return 0, err
	}
	return ManyNames(name)
}

// ManyNames gives a link in the calling thread's network namespace as many alternative
// names as the kernel allows, and returns the number of names.
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
