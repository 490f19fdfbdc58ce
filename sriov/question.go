package sriov

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// withVFs is what a question is asked beside the network device: its VFs, but not each
// VF's statistics, which make the answer of a PF several times as long.
const withVFs = nl.RTEXT_FILTER_VF | rtnl.SkipStatistics

// question asks for a network device of a name and its VFs. body is the message that
// link was read of.
type question func(name string) (link netlink.Link, body []byte, err error)

// firstThatFits asks one question after another, while the kernel says that the answer
// is too long.
func firstThatFits(name string, questions ...question) (link netlink.Link, body []byte, err error) {
	for _, q := range questions {
		if link, body, err = q(name); !errors.Is(err, unix.EMSGSIZE) {
			break
		}
	}
	return link, body, err
}

// alone asks for one network device: one question with one answer, and no dump, which a
// change would interrupt.
func alone(name string) (netlink.Link, []byte, error) { return ask(name, withVFs) }

// ask is alone with what is asked beside the network device.
func ask(name string, mask uint32) (netlink.Link, []byte, error) {
	fail := func(err error) (netlink.Link, []byte, error) {
		return nil, nil, fmt.Errorf("network device %s: %w", quote(name), err)
	}
	if !rtnl.IsName(name) {
		return fail(ErrNoLink)
	}
	answers, err := rtnl.Execute(rtnl.Named(name, mask))
	// The latter is what a kernel says that has no alternative names.
	if errors.Is(err, unix.ENODEV) || !validNetDev(name) && errors.Is(err, unix.EINVAL) {
		return fail(ErrNoLink)
	}
	if err != nil {
		return fail(err)
	}
	if len(answers) != 1 {
		return fail(fmt.Errorf("%d answers about one network device", len(answers)))
	}
	link, err := netlink.LinkDeserialize(nil, answers[0])
	if err != nil {
		return fail(err)
	}
	return link, answers[0], nil
}

// listed asks for one network device among all. Kernels before 6.15 forget the GUIDs of
// VFs when they make room for the answer about one: with a dozen VFs that of an InfiniBand
// PF does not fit. In a list there is more room. That network devices come and go meanwhile
// interrupts the list, but what it says of one is true all the same.
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
		err = ErrNoLink // by now
	}
	return nil, nil, fmt.Errorf("network device %s, in a list: %w", quote(name), err)
}
