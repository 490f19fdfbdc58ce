package sriov

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VFs are decoded from the message itself, for two reasons. The netlink library takes a
// VF's number from its position, although the kernel omits VFs for which the driver has
// no answer. And it reads a spoof check that the driver does not support as enabled.

// decodeVFs reads the VFs in the body of an RTM_NEWLINK message. Without any it returns
// nil.
func decodeVFs(body []byte) (map[int]VFState, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return nil, fmt.Errorf("network device message is too short: %d bytes", len(body))
	}
	attrs, err := attributes(body[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	infiniband := binary.NativeEndian.Uint16(body[2:]) == unix.ARPHRD_INFINIBAND // ifi_type
	var out map[int]VFState
	for _, list := range attrs {
		if list.kind != unix.IFLA_VFINFO_LIST {
			continue
		}
		infos, err := attributes(list.value)
		if err != nil {
			return nil, err
		}
		out = make(map[int]VFState, len(infos))
		for _, info := range infos {
			index, state, err := decodeVF(info.value)
			if err != nil {
				return nil, err
			}
			if infiniband { // the message has the PF's own address
				state.MAC = ""
			}
			out[index] = state
		}
	}
	return out, nil
}

// attribute is one attribute of a netlink message.
type attribute struct {
	kind  uint16
	value []byte
}

// attributes splits a message or a nested attribute into its attributes. The last one
// may lack its padding.
func attributes(b []byte) (out []attribute, err error) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, fmt.Errorf("attribute has %d bytes, but %d are left in the message", size, len(b))
		}
		out = append(out, attribute{kind: binary.NativeEndian.Uint16(b[2:]), value: b[unix.SizeofRtAttr:size]})
		padded := (size + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1)
		b = b[min(padded, len(b)):]
	}
	return out, nil
}

// vfFields decodes an IFLA_VF_* attribute: the VF's number and up to two more numbers.
// Numbers beyond the end of the value are 0.
func vfFields(value []byte) (f [3]uint32) {
	for i := range f {
		if at := 4 * i; at+4 <= len(value) {
			f[i] = binary.NativeEndian.Uint32(value[at:])
		}
	}
	return f
}

// decodeVF reads one VF's attributes. For what the driver does not support, the kernel
// sets all bits or sends nothing: it counts as off.
func decodeVF(info []byte) (index int, s VFState, err error) {
	attrs, err := attributes(info)
	if err != nil {
		return 0, s, err
	}
	index, s.LinkState = -1, linkStates[0]
	for _, a := range attrs {
		f := vfFields(a.value)
		switch a.kind {
		case nl.IFLA_VF_MAC: // comes first, and always
			if len(a.value) >= 10 {
				index, s.MAC = int(f[0]), net.HardwareAddr(a.value[4:10]).String()
			}
		case nl.IFLA_VF_VLAN:
			s.VLAN, s.VLANQoS = int(f[1]), int(f[2])
		case nl.IFLA_VF_VLAN_LIST:
			s.VLANProto, err = decodeProtocol(a.value)
		case nl.IFLA_VF_RATE:
			s.MinTxRate, s.MaxTxRate = int(f[1]), int(f[2])
		case nl.IFLA_VF_SPOOFCHK:
			s.SpoofChk = f[1] == 1
		case nl.IFLA_VF_TRUST:
			s.Trust = f[1] == 1
		case nl.IFLA_VF_LINK_STATE:
			s.LinkState = linkState(f[1])
		case nl.IFLA_VF_IB_NODE_GUID:
			s.NodeGUID = decodeGUID(a.value)
		case nl.IFLA_VF_IB_PORT_GUID:
			s.PortGUID = decodeGUID(a.value)
		}
	}
	if err == nil && index < 0 {
		err = errors.New("VF has no number")
	}
	return index, s, err
}

// linkState returns the name of a link state, or auto for an unknown one.
func linkState(value uint32) string {
	if uint64(value) < uint64(len(linkStates)) {
		return linkStates[value]
	}
	return linkStates[0]
}

// decodeGUID returns an InfiniBand GUID in text form, or an empty string if there is
// none.
func decodeGUID(value []byte) string {
	const at = 8 // after the VF number, aligned to 64 bits
	if len(value) < at+8 {
		return ""
	}
	return net.HardwareAddr(binary.BigEndian.AppendUint64(nil, binary.NativeEndian.Uint64(value[at:]))).String()
}

// decodeProtocol returns the protocol of the first VLAN in a list, or an empty string
// for an unknown protocol.
func decodeProtocol(list []byte) (string, error) {
	vlans, err := attributes(list)
	if err != nil {
		return "", err
	}
	const at = 12 // after the VF number, the VLAN and its QoS; in network byte order
	if len(vlans) == 0 || len(vlans[0].value) < at+2 {
		return "", nil
	}
	switch binary.BigEndian.Uint16(vlans[0].value[at:]) {
	case unix.ETH_P_8021Q:
		return "802.1q", nil
	case unix.ETH_P_8021AD:
		return "802.1ad", nil
	}
	return "", nil
}
