package sriov

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// answer reads what the kernel answers when it is asked for a PF: a file of
// testdata/answers, hexadecimal with comments.
//
// They are written by hand, since no lab has the hardware: the body of an
// RTM_NEWLINK message with the attributes IFLA_VF_* in the order in which
// rtnl_fill_vfinfo of the kernel's net/core/rtnetlink.c puts them, each in its
// struct ifla_vf_* of include/uapi/linux/if_link.h, little-endian, and with the
// values that the drivers' ndo_get_vf_config can give.
func answer(t *testing.T, name string) netlink.Link {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "answers", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			digits.WriteString(strings.TrimSpace(line))
		}
	}
	raw, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkDeserialize(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// What igb, the driver of the SR-IOV lab, does not have: link state, minimum
// rate, the VLAN protocol 802.1ad.
func TestAnswersOfOtherDrivers(t *testing.T) {
	for name, want := range map[string][]VFState{
		"mlx5": {
			{MAC: "02:00:00:00:41:00", VLAN: 200, VLANQoS: 5, VLANProto: "802.1ad", SpoofChk: true, Trust: true, LinkState: "enable", MinTxRate: 100, MaxTxRate: 1000},
			{MAC: "00:00:00:00:00:00", VLANProto: "802.1q", LinkState: "disable"},
		},
		"i40e": {
			{MAC: "3c:fd:fe:00:00:10", VLAN: 7, VLANProto: "802.1q", SpoofChk: true, LinkState: "auto", MaxTxRate: 50},
			{MAC: "3c:fd:fe:00:00:11", VLANProto: "802.1q", Trust: true, LinkState: "disable"},
		},
		"old": {{MAC: "02:00:00:00:00:01", VLAN: 5, VLANQoS: 3, SpoofChk: true, LinkState: "auto"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []VFState
			for i, v := range answer(t, name).Attrs().Vfs {
				if v.ID != i {
					t.Errorf("VF %d is the answer's %dth", v.ID, i)
				}
				got = append(got, stateOf(v))
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%+v\nwant %+v", got, want)
			}
		})
	}
}
