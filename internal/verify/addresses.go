package verify

import (
	"encoding/binary"
	"errors"
	"net"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The sandbox is not asked through the netlink library: its handles wait for ever for
// an answer, and fail at a message that the pod sends to their sockets.

// addresses lists the addresses of the interface with that index, in CIDR form.
func (s *Sandbox) addresses(index int) (out []string, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	bodies, err := s.links.Dump(req)
	for i := 0; i < len(bodies) && err == nil; i++ {
		var of int
		var address string
		if of, address, err = decodeAddress(bodies[i]); of == index && address != "" {
			out = append(out, address)
		}
	}
	return out, err
}

// decodeAddress reads the body of an RTM_NEWADDR message. IPv4 has the interface's own
// address in IFA_LOCAL, and in IFA_ADDRESS the same or a peer's. IPv6 has IFA_LOCAL only
// if there is a peer. Beside a peer's, the own address has no prefix.
func decodeAddress(body []byte) (index int, address string, err error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return 0, "", errShort
	}
	msg := nl.DeserializeIfAddrmsg(body)
	attrs, err := nl.ParseRouteAttr(body[msg.Len():])
	var own, network net.IP
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			own = a.Value
		case unix.IFA_ADDRESS:
			network = a.Value
		}
	}
	length := int(msg.Prefixlen)
	switch {
	case own == nil:
		own = network
	case !own.Equal(network):
		length = 8 * len(own)
	}
	if mask := net.CIDRMask(length, 8*len(own)); mask != nil {
		address = (&net.IPNet{IP: own, Mask: mask}).String()
	}
	return int(msg.Index), address, err
}

var errShort = errors.New("the kernel's message is too short")

// idOf returns the number by which the sandbox refers to another network namespace; it
// is negative for none.
func (s *Sandbox) idOf(other ns.NetNS) (int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_ACK)
	req.AddData(nl.NewRtGenMsg())
	req.AddData(nl.NewRtAttr(netlink.NETNSA_FD, nl.Uint32Attr(uint32(other.Fd()))))
	bodies, err := s.links.Execute(req)
	if err != nil {
		return 0, err
	}
	for _, body := range bodies {
		if len(body) < nl.NewRtGenMsg().Len() {
			return 0, errShort
		}
		attrs, err := nl.ParseRouteAttr(body[nl.NewRtGenMsg().Len():])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == netlink.NETNSA_NSID && len(a.Value) == 4 {
				return int(int32(binary.NativeEndian.Uint32(a.Value))), nil
			}
		}
	}
	return 0, errShort
}
