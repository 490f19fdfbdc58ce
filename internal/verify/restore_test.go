package verify

import (
	"reflect"
	"testing"
)

func TestDiffer(t *testing.T) {
	const own, given = "02:00:00:00:00:01", "02:00:00:00:00:02"
	was := func() *Device {
		return &Device{
			Driver: "igbvf", NetDevs: []NetDev{{Name: "enp1", Index: 7, MAC: own, MTU: 1500}},
			VF: &VFState{MAC: "00:00:00:00:00:00", SpoofChk: true, LinkState: "auto", VLANProto: "802.1q"},
		}
	}
	for name, tc := range map[string]struct {
		change func(before, now *Device)
		want   []string
	}{
		"nothing":                        {func(_, _ *Device) {}, nil},
		"another index, which is normal": {func(_, n *Device) { n.NetDevs[0].Index = 9 }, nil},
		"the VF told the PF its MAC":     {func(_, n *Device) { n.VF.MAC = own }, nil},
		"the PF gave it another":         {func(_, n *Device) { n.VF.MAC = given }, []string{"MAC of the VF"}},
		"the PF's MAC is gone":           {func(b, n *Device) { b.VF.MAC = given }, []string{"MAC of the VF"}},
		"the VF lost the PF's MAC":       {func(b, n *Device) { b.VF.MAC, n.VF.MAC = own, own; n.NetDevs[0].MAC = given }, []string{"MAC of enp1"}},
		"VLAN, QoS":                      {func(_, n *Device) { n.VF.VLAN, n.VF.VLANQoS = 5, 2 }, []string{"VLAN of the VF", "VLAN QoS of the VF"}},
		"protocol without a VLAN":        {func(_, n *Device) { n.VF.VLANProto = "802.1ad" }, nil},
		"protocol":                       {func(b, n *Device) { b.VF.VLAN, n.VF.VLAN, n.VF.VLANProto = 5, 5, "802.1ad" }, []string{"VLAN protocol of the VF"}},
		"flags": {func(_, n *Device) { n.VF.SpoofChk, n.VF.Trust, n.VF.LinkState = false, true, "enable" },
			[]string{"spoof check of the VF", "trust of the VF", "link state of the VF"}},
		"rates":          {func(_, n *Device) { n.VF.MinTxRate, n.VF.MaxTxRate = 1, 2 }, []string{"minimum rate of the VF", "maximum rate of the VF"}},
		"netdev":         {func(_, n *Device) { n.NetDevs[0] = NetDev{Name: "net1", MTU: 9000, Alias: "enp1"} }, []string{"network device", "alias of enp1", "MTU of enp1"}},
		"another driver": {func(_, n *Device) { n.Driver, n.NetDevs = "vfio-pci", nil }, nil},
		"no PF view":     {func(_, n *Device) { n.VF = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			before, now := was(), was()
			tc.change(before, now)
			var got []string
			for _, f := range Differ(before, now) {
				got = append(got, f.Field)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
