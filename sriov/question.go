package sriov

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What a question is asked beside the network device: its VFs, but not each VF's
// statistics, which make the answer of a PF several times as long; the netlink library
// does not have the latter.
const (
	withVFs        = nl.RTEXT_FILTER_VF | skipStatistics
	skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS of the kernel's linux/rtnetlink.h
)

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

// request begins a question; mask says what is asked beside the network device.
func request(flags int, mask uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, flags)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(mask)))
	return req
}

// alone asks for one network device: one question with one answer, and no dump, which a
// change would interrupt.
func alone(name string) (netlink.Link, []byte, error) { return ask(name, withVFs) }

// ask is alone with what is asked beside the network device.
func ask(name string, mask uint32) (netlink.Link, []byte, error) {
	fail := func(err error) (netlink.Link, []byte, error) {
		return nil, nil, fmt.Errorf("network device %s: %w", quote(name), err)
	}
	kind := unix.IFLA_IFNAME
	if !validNetDev(name) { // too long, if it is one at all
		kind = unix.IFLA_ALT_IFNAME
	}
	if !validAltName(name) {
		return fail(ErrNoLink)
	}
	req := request(unix.NLM_F_ACK, mask)
	req.AddData(nl.NewRtAttr(kind, nl.ZeroTerminated(name)))
	answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
	// The latter is what a kernel says that has no alternative names.
	if errors.Is(err, unix.ENODEV) || kind == unix.IFLA_ALT_IFNAME && errors.Is(err, unix.EINVAL) {
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
		all, err = request(unix.NLM_F_DUMP, withVFs).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
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
