package sriov

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// withVFs requests the VFs along with the network device, but without statistics for
// each VF, which would multiply the size of a PF's response.
const withVFs = nl.RTEXT_FILTER_VF | rtnl.SkipStatistics

// question asks for the network device of that name and its VFs. body is the message
// from which link was decoded.
type question func(name string) (link netlink.Link, body []byte, err error)

// firstThatFits asks the questions in turn as long as the kernel reports that the
// response is too long.
func firstThatFits(name string, questions ...question) (link netlink.Link, body []byte, err error) {
	for _, q := range questions {
		if link, body, err = q(name); !errors.Is(err, unix.EMSGSIZE) {
			break
		}
	}
	return link, body, err
}

// alone asks for one network device: one request with one response, and no dump, which
// changes would interrupt.
func alone(name string) (netlink.Link, []byte, error) { return ask(name, withVFs) }

// ask is alone with a choice of what to request along with the network device.
func ask(name string, mask uint32) (netlink.Link, []byte, error) {
	fail := func(err error) (netlink.Link, []byte, error) {
		return nil, nil, fmt.Errorf("network device %s: %w", quote(name), err)
	}
	if !rtnl.IsName(name) {
		return fail(ErrNoLink)
	}
	answers, err := rtnl.Execute(rtnl.Named(name, mask))
	// Kernels without alternative names answer EINVAL to such a name.
	if errors.Is(err, unix.ENODEV) || !validNetDev(name) && errors.Is(err, unix.EINVAL) {
		return fail(ErrNoLink)
	}
	if err != nil {
		return fail(err)
	}
	if len(answers) != 1 {
		return fail(fmt.Errorf("got %d answers, want 1", len(answers)))
	}
	link, err := netlink.LinkDeserialize(nil, answers[0])
	if err != nil {
		return fail(err)
	}
	return link, answers[0], nil
}

// listed finds one network device in a dump of all. When kernels before 6.15 size the
// response about a single device, they forget the VFs' GUIDs, so the response about an
// InfiniBand PF with a dozen VFs does not fit. A dump has more room. Network devices
// that come and go interrupt the dump, but what it says about a single device is true
// all the same.
func listed(name string) (netlink.Link, []byte, error) {
	link, _, err := ask(name, 0)
	if err != nil {
		return nil, nil, err
	}
	index, err := link.Attrs().Index, nl.ErrDumpInterrupted
	for try := 0; try < attempts && errors.Is(err, nl.ErrDumpInterrupted); try++ {
		var all [][]byte
		all, err = rtnl.Execute(rtnl.Listed(withVFs))
		for _, body := range all {
			if len(body) < unix.SizeofIfInfomsg || int(nl.DeserializeIfInfomsg(body).Index) != index {
				continue
			}
			link, err := netlink.LinkDeserialize(nil, body)
			return link, body, err
		}
	}
	if err == nil {
		err = ErrNoLink // it has disappeared
	}
	return nil, nil, fmt.Errorf("network device %s, in a dump: %w", quote(name), err)
}
