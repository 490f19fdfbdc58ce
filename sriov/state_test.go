package sriov

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestStateOf(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	got := stateOf(netlink.VfInfo{Mac: mac, Vlan: 5, Qos: 1, VlanProto: 0x88a8, Spoofchk: true, Trust: 1, LinkState: 2, MinTxRate: 3, MaxTxRate: 4})
	want := VFState{MAC: mac.String(), VLAN: 5, VLANQoS: 1, VLANProto: "802.1ad", SpoofChk: true, Trust: true, LinkState: "disable", MinTxRate: 3, MaxTxRate: 4}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// Drivers without trust report all bits set.
	if s := stateOf(netlink.VfInfo{Trust: ^uint32(0), LinkState: 9}); s.Trust || s.LinkState != "auto" {
		t.Errorf("%+v", s)
	}
}
