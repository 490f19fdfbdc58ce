package reconcile

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

const address, pf = "0000:21:10.4", "0000:21:00.0"

// idle is a VF that nobody has and that is in order.
func idle() *vf {
	return &vf{
		Function: sriov.Function{Address: address, PF: pf, VFIndex: 2, Driver: "igbvf"},
		state: &sriov.Snapshot{
			Driver: "igbvf", PF: "enp33", VFIndex: 2, NetDevs: []sriov.NetDev{{Name: "enp33v2"}},
			VF: &sriov.VFState{MAC: "02:00:00:00:00:01", SpoofChk: true, LinkState: "auto", VLANProto: "802.1q"},
		},
	}
}

// owned gives the VF to a sandbox whose attachment asks for VLAN 5.
func owned(v *vf, alive bool, phases ...journal.Phase) {
	vlan := 5
	v.owner = &owner{key: journal.Key{ContainerID: "c", IfName: "eth0"}, alive: alive, entry: &journal.Entry{
		Plan: &plan.Plan{Pod: plan.Pod{Namespace: "shop", Name: "web"}, Attachments: []plan.Attachment{{Name: "shop/fast", Want: plan.Want{VF: &plan.VF{VLAN: &vlan}}}}},
	}}
	for _, phase := range phases {
		v.owner.entry.Steps = append(v.owner.entry.Steps, journal.Step{Phase: phase})
	}
	v.state.VF.VLAN, v.state.NetDevs, v.allocated = 5, nil, true
}

// confined puts the VF into quarantine until it is in the state to.
func confined(t *testing.T, v *vf, to *sriov.Snapshot) {
	t.Helper()
	raw, err := json.Marshal(to)
	if err != nil {
		t.Fatal(err)
	}
	d := journal.Dir{Path: t.TempDir()}
	if err := d.Quarantine(journal.Quarantine{Device: address, To: raw}); err != nil {
		t.Fatal(err)
	}
	v.quarantine, v.unreadable = d.Quarantined(address)
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(v *vf)
		want   []Kind
	}{
		"idle":                       {func(*vf) {}, nil},
		"spoof check, trust and MAC": {func(v *vf) { v.state.VF.SpoofChk, v.state.VF.Trust, v.state.VF.MAC = false, true, "02:00:00:00:00:02" }, nil},
		"VLAN left":                  {func(v *vf) { v.state.VF.VLAN = 7 }, []Kind{Leftover}},
		"rate left":                  {func(v *vf) { v.state.VF.MaxTxRate = 7 }, []Kind{Leftover}},
		"link state left":            {func(v *vf) { v.state.VF.LinkState = "disable" }, []Kind{Leftover}},
		"away":                       {func(v *vf) { v.state.NetDevs = nil }, []Kind{Orphaned}},
		"away with a VLAN":           {func(v *vf) { v.state.NetDevs, v.state.VF.VLAN = nil, 7 }, []Kind{Orphaned, Leftover}},
		"userspace":                  {func(v *vf) { v.Driver, v.state.NetDevs = "vfio-pci", nil }, nil},
		"no driver":                  {func(v *vf) { v.Driver, v.state.NetDevs = "", nil }, nil},
		"allocated":                  {func(v *vf) { v.allocated, v.state.NetDevs, v.state.VF.VLAN = true, nil, 7 }, nil},
		"gone under a pod":           {func(v *vf) { owned(v, true, journal.Verified); v.state = nil }, []Kind{Vanished}},
		"gone during an ADD":         {func(v *vf) { owned(v, true, journal.Trying); v.state = nil }, []Kind{Vanished}},
		"gone with its sandbox":      {func(v *vf) { owned(v, false, journal.Verified); v.state = nil }, []Kind{Stranded}},
		"in a pod":                   {func(v *vf) { owned(v, true, journal.Verified) }, nil},
		"in a dead sandbox":          {func(v *vf) { owned(v, false, journal.Verified) }, []Kind{Stranded}},
		"drifted":                    {func(v *vf) { owned(v, true, journal.Routed); v.state.VF.VLAN = 6 }, []Kind{Drifted}},
		"an ADD is under way":        {func(v *vf) { owned(v, true, journal.Trying); v.state.VF.VLAN = 0 }, nil},
		"quarantined":                {func(v *vf) { confined(t, v, idle().state); v.state.VF.Trust = true }, []Kind{Quarantined}},
		"quarantined, netdev away":   {func(v *vf) { confined(t, v, idle().state); v.state.NetDevs = nil }, []Kind{Quarantined}},
		"quarantined, clean":         {func(v *vf) { confined(t, v, idle().state) }, nil},
		"quarantined and allocated":  {func(v *vf) { confined(t, v, idle().state); v.state.VF.Trust, v.allocated = true, true }, []Kind{Quarantined}},
		"quarantined before a boot":  {func(v *vf) { confined(t, v, idle().state); v.state.VF.Trust, v.quarantine.Boot = true, "x" }, nil},
		"quarantined and stranded":   {func(v *vf) { confined(t, v, idle().state); owned(v, false, journal.Verified) }, []Kind{Quarantined, Stranded}},
		"accepted by a living pod":   {func(v *vf) { confined(t, v, idle().state); owned(v, true, journal.Verified) }, nil},
		"unreadable quarantine":      {func(v *vf) { v.unreadable = errors.New("line without end") }, []Kind{Quarantined}},
		"quarantined, made again": {func(v *vf) {
			v.state.Instance = 1
			confined(t, v, v.state)
			v.state.Instance, v.state.VF.Trust = 2, true
		}, nil},
		"senseless quarantine": {func(v *vf) { confined(t, v, nil); v.quarantine.To = nil }, []Kind{Quarantined}},
		"a DEL has failed":     {func(v *vf) { owned(v, true, journal.ReleaseFailed); v.state.VF.VLAN = 0 }, []Kind{Unreleased}},
		"a DEL is tried again": {func(v *vf) { owned(v, true, journal.ReleaseFailed, journal.Releasing) }, []Kind{Unreleased}},
		"a DEL is under way":   {func(v *vf) { owned(v, true, journal.Releasing); v.state.VF.VLAN = 0 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := idle()
			tc.change(v)
			got := judge(v)
			if len(got) != len(tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			for i, f := range got {
				if f.Kind != tc.want[i] || f.Device != address || f.PF != pf || f.VFIndex != 2 || f.Text == "" {
					t.Errorf("%+v, want %s", f, tc.want[i])
				}
				if f.Kind != Quarantined && v.owner != nil && (f.Sandbox != "c@eth0" || f.Pod != "shop/web" || f.Network != "shop/fast") {
					t.Errorf("%+v names no owner", f)
				}
			}
		})
	}
}
