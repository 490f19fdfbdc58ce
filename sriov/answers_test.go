package sriov

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// answer reads a kernel's answer to a query about a PF from a file of testdata/answers,
// which is hexadecimal with comments.
//
// The files are written by hand, because no lab has the hardware. Each holds the body
// of an RTM_NEWLINK message, little-endian. The IFLA_VF_* attributes are in the order
// of rtnl_fill_vfinfo in the kernel's net/core/rtnetlink.c, each with its struct
// ifla_vf_* from include/uapi/linux/if_link.h, and with values that the drivers'
// ndo_get_vf_config can give.
func answer(t *testing.T, name string) []byte {
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
	return raw
}

// These answers cover what igb, the driver of the SR-IOV lab, does not have: link
// state, minimum rate, and the VLAN protocol 802.1ad.
func TestAnswersOfOtherDrivers(t *testing.T) {
	for name, want := range map[string]map[int]VFState{
		"mlx5": {
			0: {MAC: "02:00:00:00:41:00", VLAN: 200, VLANQoS: 5, VLANProto: "802.1ad", SpoofChk: true, Trust: true, LinkState: "enable", MinTxRate: 100, MaxTxRate: 1000},
			1: {MAC: "00:00:00:00:00:00", VLANProto: "802.1q", LinkState: "disable"},
		},
		"i40e": {
			0: {MAC: "3c:fd:fe:00:00:10", VLAN: 7, VLANProto: "802.1q", SpoofChk: true, LinkState: "auto", MaxTxRate: 50},
			1: {MAC: "3c:fd:fe:00:00:11", VLANProto: "802.1q", Trust: true, LinkState: "disable"},
		},
		"mlx5_ib": {
			0: {LinkState: "enable", NodeGUID: "c2:11:22:33:44:55:66:77", PortGUID: "c2:11:22:33:44:55:66:78"},
			1: {LinkState: "auto", NodeGUID: "00:00:00:00:00:00:00:00", PortGUID: "00:00:00:00:00:00:00:00"},
		},
		"old": {0: {MAC: "02:00:00:00:00:01", VLAN: 5, VLANQoS: 3, LinkState: "auto"}},
		"gap": {
			1: {MAC: "02:00:00:00:00:11", VLAN: 11, VLANProto: "802.1q", LinkState: "auto"},
			2: {MAC: "02:00:00:00:00:12", VLAN: 12, VLANProto: "802.1q", LinkState: "auto"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeVFs(answer(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%+v\nwant %+v", got, want)
			}
		})
	}
}

// FuzzDecodeVFs checks that any message is either decoded or refused.
func FuzzDecodeVFs(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 16))
	f.Add(append(make([]byte, 16), 8, 0, 22, 0, 4, 0, 1, 0))
	f.Add(append(make([]byte, 16), 12, 0, 43, 0, 8, 0, 6, 0, 12, 0, 0, 0)) // IFLA_XDP
	f.Fuzz(func(t *testing.T, body []byte) {
		vfs, err := decodeVFs(body)
		if err != nil && vfs != nil {
			t.Errorf("both %v and %v", vfs, err)
		}
		if programs, err := decodeXDP(body); err != nil && programs != nil {
			t.Errorf("both %v and %v", programs, err)
		}
	})
}
