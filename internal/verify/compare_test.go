package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

const (
	pf = "0000:21:00.0"
	vf = "0000:21:10.4"
)

func ptr(n int) *int { return &n }

// good returns an attachment on a VF, the claim for it, and facts that match both.
func good() (*plan.Attachment, Claim, *sriov.Snapshot, *Facts) {
	a := &plan.Attachment{
		IfName: "net1", Device: &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf, PF: pf, Driver: "igbvf"},
		Want: plan.Want{
			Verify: plan.VerifyEnforce, MAC: "02:00:00:00:00:01", MTU: 1400, IPs: []string{"10.0.0.2"},
			VF: &plan.VF{
				VLAN: ptr(100), VLANQoS: ptr(3), VLANProto: "802.1Q", MAC: "02:00:00:00:00:01", SpoofChk: "off", Trust: "on",
				LinkState: "enable", MinTxRate: ptr(10), MaxTxRate: ptr(200), GUID: "02-00-00-00-00-00-00-07",
			},
		},
	}
	c := Claim{Interface: true, MAC: "02:00:00:00:00:01", MTU: 1400, Addresses: []string{"10.0.0.2/24"}}
	before := &sriov.Snapshot{NetDevs: []sriov.NetDev{{Name: "ens1v2", Index: 7, MAC: "02:00:00:00:00:aa"}}, VFIndex: 2, Instance: 4711}
	f := &Facts{
		Interface: Interface{Exists: true, Name: "net1", MAC: "02:00:00:00:00:01", MTU: 1400, Up: true, Parent: vf, Addresses: []string{"10.0.0.2/24", "fe80::1/64"}},
		Device: &sriov.Snapshot{Driver: "igbvf", Instance: 4711, VF: &sriov.VFState{
			MAC: "02:00:00:00:00:01", VLAN: 100, VLANQoS: 3, VLANProto: "802.1q", Trust: true, LinkState: "enable", MinTxRate: 10, MaxTxRate: 200,
			NodeGUID: "02:00:00:00:00:00:00:07", PortGUID: "02:00:00:00:00:00:00:07",
		}},
	}
	return a, c, before, f
}

func TestAllAsItShouldBe(t *testing.T) {
	a, c, before, f := good()
	r := Compare(a, c, before, f)
	if len(r.Findings) != 0 || len(r.Checked) != 22 {
		t.Errorf("%d checked: %v; findings %v", len(r.Checked), r.Checked, r.Findings)
	}
}

func TestEveryLieIsFound(t *testing.T) {
	for name, tc := range map[string]struct {
		lie  func(*plan.Attachment, *Claim, *Facts)
		want string
	}{
		"missing":       {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface = Interface{} }, "interface net1: wanted present, found absent"},
		"other missing": {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Missing = []string{"ghost0"} }, "interface ghost0: wanted present"},
		"wrong VF":      {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.Parent = "0000:21:10.6" }, "parent device: wanted 0000:21:10.4, found 0000:21:10.6"},
		"no parent":     {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.Parent = "" }, "parent device: wanted 0000:21:10.4, found none"},
		"left on host": {func(_ *plan.Attachment, _ *Claim, f *Facts) {
			f.LeftOnHost = []sriov.NetDev{{Name: "ens1v2", Index: 7}}
		}, "network device ens1v2"},
		"MAC requested":   {func(a *plan.Attachment, _ *Claim, _ *Facts) { a.Want.MAC = "02:00:00:00:00:02" }, "MAC (requested): wanted 02:00:00:00:00:02"},
		"MAC claimed":     {func(_ *plan.Attachment, c *Claim, _ *Facts) { c.MAC = "02:00:00:00:00:02" }, "MAC (result)"},
		"MTU dropped":     {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.MTU = 1500 }, "MTU (configuration): wanted 1400, found 1500"},
		"MTU claimed":     {func(_ *plan.Attachment, c *Claim, _ *Facts) { c.MTU = 9000 }, "MTU (result): wanted 9000"},
		"address missing": {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.Addresses = nil }, "address (result): wanted 10.0.0.2/24, found none"},
		"prefix length":   {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.Addresses = []string{"10.0.0.2/16"} }, "address (result): wanted 10.0.0.2/24, found 10.0.0.2/16"},
		"VLAN":            {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.VLAN = 0 }, "VLAN of the VF: wanted 100, found 0"},
		"QoS":             {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.VLANQoS = 0 }, "VLAN QoS of the VF"},
		"VLAN protocol":   {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.VLANProto = "802.1ad" }, "VLAN protocol of the VF: wanted 802.1q, found 802.1ad"},
		"VF MAC":          {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.MAC = "00:00:00:00:00:00" }, "MAC of the VF"},
		"node GUID":       {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.NodeGUID = "00:00:00:00:00:00:00:00" }, "node GUID of the VF: wanted 02:00:00:00:00:00:00:07, found 00"},
		"port GUID":       {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.PortGUID = "00:00:00:00:00:00:00:00" }, "port GUID of the VF: wanted 02:00:00:00:00:00:00:07, found 00"},
		"spoof check":     {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.SpoofChk = true }, "spoof check of the VF: wanted off, found on"},
		"trust":           {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.Trust = false }, "trust of the VF: wanted on, found off"},
		"link state":      {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.LinkState = "auto" }, "link state of the VF: wanted enable, found auto"},
		"minimum rate":    {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.MinTxRate = 0 }, "minimum rate of the VF"},
		"maximum rate":    {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF.MaxTxRate = 0 }, "maximum rate of the VF"},
		"made again":      {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.Instance++ }, "PCI function: wanted the one that was handed over, found another one"},
		"its driver":      {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.Driver = "vfio-pci" }, "driver: wanted igbvf, found vfio-pci"},
		"no driver":       {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.Driver = "" }, "driver: wanted igbvf, found none"},
		"gone":            {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device = nil }, "allocated device 0000:21:10.4: wanted on the node, found gone"},
		"left down":       {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Interface.Up = false }, "administrative state: wanted up, found down"},
		"no VF on the PF": {func(_ *plan.Attachment, _ *Claim, f *Facts) { f.Device.VF = nil }, "virtual function"},
	} {
		t.Run(name, func(t *testing.T) {
			a, c, before, f := good()
			tc.lie(a, &c, f)
			var found []string
			for _, x := range Compare(a, c, before, f).Findings {
				found = append(found, x.String())
			}
			if !strings.Contains(strings.Join(found, "\n"), tc.want) {
				t.Errorf("findings %q lack %q", found, tc.want)
			}
		})
	}
}

// The purpose of a device that the configuration names itself is unknown. Its presence
// and identity are compared all the same.
func TestDeviceThatTheConfigurationNames(t *testing.T) {
	a, _, before, f := good()
	a.Device.Written, a.Want = true, plan.Want{}
	f.LeftOnHost, f.Interface = before.NetDevs, Interface{}
	if r := Compare(a, Claim{}, before, f); len(r.Findings) > 0 {
		t.Errorf("%v", r.Findings)
	}
	f.Device.Instance++
	if r := Compare(a, Claim{}, before, f); len(r.Findings) != 1 || r.Findings[0].Field != classFunction {
		t.Errorf("another function: %v", r.Findings)
	}
}

// Of an InfiniBand interface's address only the GUID is compared, even when its driver
// has renewed the rest since the delegate ran.
func TestInfiniBandInterface(t *testing.T) {
	const begin, guid = "00:00:02:08:fe:80:00:00:00:00:00:00:", "c2:11:22:33:44:55:66:77"
	a, c, before, f := good()
	a.Want.MAC, a.Want.VF.MAC, f.Device.VF.MAC = "", "", ""
	c.MAC, f.Interface.MAC = begin+guid, "80:00:10:2a:fe:80:00:00:00:00:00:01:"+guid
	if r := Compare(a, c, before, f); len(r.Findings) > 0 {
		t.Errorf("%v", r.Findings)
	}
	a.Device.PCIAddress, a.Device.ID, before.NetDevs[0].MAC = "", "ib7", c.MAC
	if r := Compare(a, c, before, f); len(r.Findings) > 0 || !slices.Contains(r.Checked, "identity by hardware address") {
		t.Errorf("by its address: %v, checked %v", r.Findings, r.Checked)
	}
	f.Interface.MAC = begin + "b8:59:9f:03:00:a4:3e:7c"
	if r := Compare(a, c, before, f); len(r.Findings) != 2 || r.Findings[0].Field != "MAC (result)" {
		t.Errorf("another GUID: %v", r.Findings)
	}
}

// An InfiniBand VF has no MAC that its PF could tell. A configuration that asks for one
// learns that.
func TestMACOfAnInfiniBandVF(t *testing.T) {
	d := &sriov.Snapshot{VF: &sriov.VFState{LinkState: "auto"}}
	found := CompareVF(&plan.VF{MAC: "02:00:00:00:00:01"}, d)
	if want := "MAC of the VF: wanted 02:00:00:00:00:01, found none: an InfiniBand VF has a GUID"; len(found) != 1 || found[0].String() != want {
		t.Errorf("%v, want %s", found, want)
	}
}

// A kernel that tells no GUIDs does not contradict a requested one.
func TestGUIDsThatAreNotTold(t *testing.T) {
	a, c, before, f := good()
	f.Device.VF.NodeGUID, f.Device.VF.PortGUID = "", ""
	if r := Compare(a, c, before, f); len(r.Findings) > 0 {
		t.Errorf("%v", r.Findings)
	}
}

// A GUID alone does not need a visible PF; anything beside it does.
func TestGUIDWithoutAPFToAsk(t *testing.T) {
	_, _, _, f := good()
	f.Device.VF = nil
	w := &plan.VF{GUID: "02:00:00:00:00:00:00:07"}
	for name, d := range map[string]*sriov.Snapshot{"PF": f.Device, "device": nil} {
		if found := CompareVF(w, d); len(found) > 0 {
			t.Errorf("no %s: %v", name, found)
		}
		beside := *w
		beside.Trust = "on"
		if found := CompareVF(&beside, d); len(found) != 1 || found[0].Field != "virtual function" {
			t.Errorf("no %s, and trust asked beside: %v", name, found)
		}
	}
}

// An interface that is down is a finding only if the plan asks for its link to be up.
func TestInterfaceThatMayBeDown(t *testing.T) {
	for _, state := range []string{"auto", "disable", ""} {
		a, c, before, f := good()
		f.Interface.Up, f.Device.VF.LinkState, a.Want.VF.LinkState = false, state, state
		if r := Compare(a, c, before, f); len(r.Findings) > 0 {
			t.Errorf("link state %q: %v", state, r.Findings)
		}
	}
}

func TestCarrierPolicies(t *testing.T) {
	const up, linked, down = unix.IFF_UP, unix.IFF_UP | unix.IFF_LOWER_UP, 0
	for name, tc := range map[string]struct {
		policy string
		found  uint32
		want   string
	}{
		"linked":         {plan.CarrierRequire, linked, "checked [carrier], findings [], warnings []"},
		"required":       {plan.CarrierRequire, up, "checked [], findings [carrier: wanted one, found none, though the interface is up], warnings []"},
		"left down":      {plan.CarrierRequire, down, "checked [], findings [carrier: wanted one, found none, since the interface is down], warnings []"},
		"reported":       {plan.CarrierWarn, up, "checked [], findings [], warnings [carrier: wanted one, found none, though the interface is up]"},
		"reported, down": {plan.CarrierWarn, down, "checked [], findings [], warnings [carrier: wanted one, found none, since the interface is down]"},
	} {
		var r Report
		compareCarrier(&r, tc.policy, tc.found)
		if got := fmt.Sprintf("checked %v, findings %v, warnings %v", r.Checked, r.Findings, r.Warnings); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestDevicesOfWhichTheKernelNamesNoParent(t *testing.T) {
	a := &plan.Attachment{IfName: "net1", Device: &plan.Device{ID: "mlx5_core.sf.2"}}
	before := &sriov.Snapshot{NetDevs: []sriov.NetDev{{Name: "en8s88", Index: 9, MAC: "02:00:00:00:00:09"}}}
	away := &sriov.Snapshot{VFIndex: -1}
	f := &Facts{Interface: Interface{Exists: true, MAC: "02:00:00:00:00:09"}, Device: away}
	if r := Compare(a, Claim{}, before, f); len(r.Findings) != 0 || len(r.Checked) != 2 {
		t.Errorf("%+v", r)
	}
	f.Interface.MAC = "02:00:00:00:00:10"
	if r := Compare(a, Claim{}, before, f); len(r.Findings) != 1 || !strings.Contains(r.Findings[0].String(), "02:00:00:00:00:09") {
		t.Errorf("another device: %+v", r)
	}
	a.Want.MAC = "02:00:00:00:00:10" // newly requested: the old address proves nothing
	if r := Compare(a, Claim{}, before, f); len(r.Findings) != 0 {
		t.Errorf("address asked for: %+v", r)
	}
	f.Interface.Parent = "mlx5_core.sf.3"
	if r := Compare(a, Claim{}, before, f); len(r.Findings) != 1 {
		t.Errorf("the kernel names another parent: %+v", r)
	}
	stacked := &Facts{Interface: Interface{Exists: true, Lower: 9}, LeftOnHost: before.NetDevs, Device: away}
	a.Want.MAC = ""
	if r := Compare(a, Claim{}, before, stacked); len(r.Findings) != 0 {
		t.Errorf("macvlan on the device: %+v", r)
	}
}

// A userspace device has no interface, whatever its delegate claims. Every other wrong
// claim is found.
func TestUserspaceDevices(t *testing.T) {
	d := &plan.Device{ID: vf, PCIAddress: vf, PF: pf, Driver: "vfio-pci", Userspace: true, IOMMUGroup: "15"}
	a := &plan.Attachment{IfName: "net1", Device: d}
	before := &sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", Instance: 1}
	for name, tc := range map[string]struct {
		c      Claim
		change func(f *Facts)
		want   string
	}{
		"as planned":     {Claim{}, func(*Facts) {}, ""},
		"claimed":        {Claim{Interface: true, MAC: "02:00:00:00:00:01", Addresses: []string{"10.1.0.2/24"}}, func(f *Facts) { f.Missing = []string{"net1"} }, ""},
		"a software one": {Claim{}, func(f *Facts) { f.Interface = Interface{Exists: true, Name: "net1", MAC: "02:00:00:00:00:01"} }, ""},
		"another VF":     {Claim{}, func(f *Facts) { f.Interface = Interface{Exists: true, Name: "net1", Parent: "0000:21:10.6"} }, "parent device: wanted 0000:21:10.4, found 0000:21:10.6"},
		"another driver": {Claim{}, func(f *Facts) { f.Device.Driver, f.Node = "igbvf", "" }, "driver: wanted vfio-pci, found igbvf"},
		"another group":  {Claim{}, func(f *Facts) { f.Device.IOMMUGroup = "16" }, "IOMMU group: wanted 15, found 16"},
		"no group":       {Claim{}, func(f *Facts) { f.Device.IOMMUGroup = "" }, "IOMMU group: wanted 15, found none"},
		"no device node": {Claim{}, func(f *Facts) { f.NodeProblem = &sriov.NodeError{Path: "/dev/vfio/15", Found: "none"} }, "device node: wanted /dev/vfio/15, found none"},
		"made again":     {Claim{}, func(f *Facts) { f.Device.Instance = 2 }, "PCI function: wanted the one"},
		"gone":           {Claim{}, func(f *Facts) { f.Device = nil }, "allocated device 0000:21:10.4: wanted on the node, found gone"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Facts{Device: &sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", Instance: 1}, Node: "/dev/vfio/15"}
			tc.change(f)
			r := Compare(a, tc.c, before, f)
			if got := sriov.Sentences(r.Findings); tc.want == "" && (got != "" || len(r.Checked) < 4) || !strings.Contains(got, tc.want) {
				t.Errorf("checked %q, found %q, want %q", r.Checked, got, tc.want)
			}
		})
	}
	if r := Compare(a, Claim{}, before, &Facts{}); !strings.Contains(r.Fix(), "created it again") {
		t.Errorf("fix for a device that left the node: %s", r.Fix())
	}
	node := &Facts{Device: &sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15"}, NodeProblem: &sriov.NodeError{Path: "/dev/vfio/15", Found: "none"}}
	if r := Compare(a, Claim{}, before, node); Class(r.Findings[0]) != "device node" || !strings.Contains(r.Fix(), "device node") {
		t.Errorf("fix without a device node: %s (class %s)", r.Fix(), Class(r.Findings[0]))
	}
	old := *d
	old.IOMMUGroup = "" // an older agent does not have it
	f := &Facts{Device: &sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "16"}}
	if r := Compare(&plan.Attachment{Device: &old}, Claim{}, before, f); len(r.Findings) != 1 {
		t.Errorf("by an older agent's plan: %+v", r)
	}
}

// A VF that had no netdev to begin with, and whose delegate claims nothing, is no
// attachment unless the VF has another use.
func TestVFWithoutNetDev(t *testing.T) {
	serves := func(by string) func(*sriovtest.Tree) {
		return func(tree *sriovtest.Tree) {
			if err := os.MkdirAll(filepath.Join(tree.Root(), "sys/bus/pci/devices", vf, by), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		change func(*sriovtest.Tree)
		want   string
	}{
		"elsewhere":     {func(*sriovtest.Tree) {}, fieldNetDev + ": wanted one, found none"},
		"bound to VFIO": {func(tree *sriovtest.Tree) { tree.Bind(vf, "vfio-pci") }, "driver: wanted igbvf, found vfio-pci"},
		"without a driver": {func(tree *sriovtest.Tree) { tree.Bind(vf, "") },
			"driver: wanted igbvf, found none, " + fieldNetDev + ": wanted one, found none"},
		"serves by RDMA": {serves("infiniband/mlx5_0"), ""},
		"serves by vDPA": {serves("vdpa0"), ""},
		"gone":           {func(tree *sriovtest.Tree) { tree.Remove(vf) }, "allocated device " + vf + ": wanted on the node, found gone"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := sriovtest.New(t.TempDir())
			tree.AddIGB()
			tree.RemoveNetDev("enp33s16f4")
			sandbox, err := OpenSandbox(filepath.Join(tree.Root(), "gone"))
			if err != nil {
				t.Fatal(err)
			}
			defer sandbox.Close()
			a := &plan.Attachment{IfName: "net1", Device: &plan.Device{ID: vf, PCIAddress: vf, PF: pf, Driver: "igbvf"}}
			before, err := Capture(tree.Host(), a.Device)
			if err != nil {
				t.Fatal(err)
			}
			tc.change(tree)
			f, err := Look(tree.Host(), sandbox, a, nil, before)
			if err != nil || tree.Err() != nil {
				t.Fatal(err, tree.Err())
			}
			r := Compare(a, Claim{}, before, f)
			if got := sriov.Sentences(r.Findings); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			if tc.want != "" && strings.Contains(r.Fix(), "delegate did not") {
				t.Errorf("the fix blames the delegate: %s", r.Fix())
			}
		})
	}
}

// Lost finds what a living sandbox no longer has of its device.
func TestLost(t *testing.T) {
	before := &sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", Instance: 1, NetDevs: []sriov.NetDev{{Name: "ens1v2", Index: 7}}}
	for name, tc := range map[string]struct {
		now     sriov.Snapshot
		checked []string
		want    string
	}{
		"nothing":          {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", Instance: 1}, []string{"driver"}, ""},
		"the function":     {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", Instance: 2}, nil, "PCI function: wanted the one"},
		"the driver":       {sriov.Snapshot{Driver: "igbvf", IOMMUGroup: "15", Instance: 1}, nil, "driver: wanted vfio-pci, found igbvf"},
		"the group":        {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "16", Instance: 1}, nil, "IOMMU group: wanted 15, found 16"},
		"its netdev":       {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", NetDevs: before.NetDevs}, []string{"MTU"}, "network device ens1v2: wanted in the sandbox"},
		"nobody looked":    {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", NetDevs: before.NetDevs}, nil, ""},
		"a newer netdev":   {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", NetDevs: []sriov.NetDev{{Name: "ens1v2", Index: 8}}}, nil, "network device ens1v2"},
		"it is stacked on": {sriov.Snapshot{Driver: "vfio-pci", IOMMUGroup: "15", NetDevs: before.NetDevs}, []string{stacked + "ens1v2 of the allocated device"}, ""},
	} {
		if got := sriov.Sentences(Lost(before, &tc.now, tc.checked)); tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// The device node is checked only while the function is bound to VFIO.
func TestDeviceNode(t *testing.T) {
	const vf = "0000:18:01.1"
	tree := sriovtest.New(t.TempDir())
	tree.AddICE()
	look := func() Facts {
		t.Helper()
		var f Facts
		if err := f.lookAtNode(tree.Host(), vf); err != nil || tree.Err() != nil {
			t.Fatal(err, tree.Err())
		}
		return f
	}
	if f := look(); f.Node != "/dev/vfio/83" || f.NodeProblem != nil {
		t.Errorf("%+v", f)
	}
	if err := os.Remove(filepath.Join(tree.Root(), "dev/vfio/83")); err != nil {
		t.Fatal(err)
	}
	if f := look(); f.NodeProblem == nil || f.NodeProblem.Found != "none" {
		t.Errorf("without its node: %+v", f)
	}
	tree.Bind(vf, "iavf")
	if f := look(); f.Node != "" || f.NodeProblem != nil {
		t.Errorf("at the kernel's driver: %+v", f)
	}
	tree.Remove(vf)
	if f := look(); f.Node != "" || f.NodeProblem != nil {
		t.Errorf("gone: %+v", f)
	}
}

// A VF that was created again is as the kernel made it. It is neither restored from the
// record of its predecessor nor waited for.
func TestRestoreLeavesAnotherFunctionAlone(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	host, d := tree.Host(), &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf, PF: pf}
	before, err := Capture(host, d)
	if err != nil {
		t.Fatal(err)
	}
	tree.RemoveVFs(pf)
	tree.AddVF(sriovtest.VF{PF: pf, Index: 2, Address: vf, Driver: "igbvf"})
	if err := host.Links.SetVF("enp33s0", 2, sriov.PropertyVLAN, sriov.VFState{VLAN: 5}); err != nil || tree.Err() != nil {
		t.Fatal(err, tree.Err())
	}
	if changed, err := Restore(t.Context(), host, d, before); err != nil || len(changed) > 0 {
		t.Errorf("changed %v, %v", changed, err)
	}
	if now, err := host.Snapshot(vf); err != nil || now.VF.VLAN != 5 {
		t.Errorf("%+v, %v", now, err)
	}
	if _, err := host.Reset(vf, before); !errors.Is(err, sriov.ErrReplaced) {
		t.Errorf("reset: %v", err)
	}
}

// Restore restores the former state of a VF, which may differ from that of a fresh one.
func TestRestoreIsAsBefore(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	host, d := tree.Host(), &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf, PF: pf}
	set := func(s sriov.VFState) {
		t.Helper()
		for _, p := range []sriov.Property{sriov.PropertyVLAN, sriov.PropertySpoofChk, sriov.PropertyTrust, sriov.PropertyLinkState, sriov.PropertyRate} {
			if err := host.Links.SetVF("enp33s0", 2, p, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	set(sriov.VFState{VLAN: 7, VLANQoS: 1, VLANProto: "802.1ad", Trust: true, LinkState: "disable", MinTxRate: 5, MaxTxRate: 50})
	before, err := Capture(host, d)
	if err != nil {
		t.Fatal(err)
	}
	set(sriov.VFState{VLAN: 100, VLANProto: "802.1q", SpoofChk: true, LinkState: "auto"})
	if changed, err := Restore(t.Context(), host, d, before); err != nil || len(changed) != 8 {
		t.Errorf("changed %v, %v, want all eight", changed, err)
	}
	if now, err := host.Snapshot(vf); err != nil || *now.VF != *before.VF {
		t.Errorf("%+v, %v, was %+v", now.VF, err, before.VF)
	}
}

// When the device leaves the node during an operation, that is why the operation
// failed.
func TestVanishedUnderway(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	d := &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf}
	before, err := Capture(tree.Host(), d)
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("a delegate's failure")
	vanished := func(cause error) error { return Vanished(tree.Host(), d, before, cause) }
	if err := vanished(failure); !errors.Is(err, failure) || cnierr.Is(err, cnierr.DeviceVanished) {
		t.Errorf("with the device on the node: %v", err)
	}
	tree.Remove(vf)
	if err := vanished(failure); !errors.Is(err, failure) || !cnierr.Is(err, cnierr.DeviceVanished) || vanished(nil) != nil {
		t.Errorf("without: %v, %v", err, vanished(nil))
	}
	tree.AddVF(sriovtest.VF{PF: pf, Index: 2, Address: vf, Driver: "igbvf"})
	if err := vanished(failure); !cnierr.Is(err, cnierr.DeviceVanished) || !strings.Contains(err.Error(), "another function") {
		t.Errorf("with another one in its place: %v", err)
	}
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestVanishedDevice(t *testing.T) {
	tree := sriovtest.New(filepath.Join(t.TempDir(), "host"))
	tree.AddIGB()
	if err := os.MkdirAll(tree.Root(), 0o755); err != nil || tree.Err() != nil {
		t.Fatal(err, tree.Err())
	}
	d := &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf}
	if out, err := Capture(tree.Host(), d); cnierr.Is(err, cnierr.DeviceVanished) {
		t.Fatalf("a present device: %+v, %v", out, err)
	}
	tree.Remove(vf)
	_, err := Capture(tree.Host(), d)
	if !cnierr.Is(err, cnierr.DeviceVanished) || !strings.Contains(err.Error(), vf) || !strings.Contains(err.Error(), "r/x") {
		t.Errorf("vanished device: %v", err)
	}
	if out, err := Capture(tree.Host(), nil); out != nil || err != nil {
		t.Errorf("no device: %v %v", out, err)
	}
	if back, err := Returned(tree.Host(), d, &sriov.Snapshot{NetDevs: []sriov.NetDev{{Name: "x"}}}); !back || err != nil {
		t.Errorf("a device that left the node has none to return: %v %v", back, err)
	}
}

func TestCaptureOfAnOmittedVF(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	d := &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf}
	tree.Omit(vf, -1)
	if out, err := Capture(tree.Host(), d); !cnierr.Is(err, cnierr.TryAgain) || !errors.Is(err, sriov.ErrOmitted) || !strings.Contains(err.Error(), vf) {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestReturnedAtAnotherDriver(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	d := &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf}
	had := &sriov.Snapshot{Driver: "igbvf", NetDevs: []sriov.NetDev{{Name: "x"}, {Name: "y"}}}
	for driver, want := range map[string]bool{"igbvf": false, "vfio-pci": true} {
		tree.Bind(vf, driver)
		if back, err := Returned(tree.Host(), d, had); back != want || err != nil {
			t.Errorf("with driver %s: returned %v, %v", driver, back, err)
		}
	}
}

// A record of an older Manifold lacks the netdev's settings: they are left as they are.
func TestOlderRecordHasNoSettings(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	host, d := tree.Host(), &plan.Device{Resource: "r/x", ID: vf, PCIAddress: vf, PF: pf}
	now, err := host.Snapshot(vf)
	if err != nil {
		t.Fatal(err)
	}
	dev := now.NetDevs[0]
	before, err := Recorded(json.RawMessage(fmt.Sprintf(`{"netDevs":[{"name":%q,"index":%d,"mac":%q,"mtu":1500}],"driver":"igbvf","pf":"enp33s0","vfIndex":2,
		"vf":{"mac":"00:00:00:00:00:00","vlan":0,"vlanQoS":0,"vlanProto":"802.1q","spoofchk":true,"trust":false,"linkState":"auto","minTxRate":0,"maxTxRate":0}}`,
		dev.Name, dev.Index, dev.MAC)))
	if err != nil {
		t.Fatal(err)
	}
	dev.MTU, dev.Settings = 9000, &sriov.Settings{Group: 9}
	if err := host.Links.SetNetDev(dev.Name, dev); err != nil {
		t.Fatal(err)
	}
	changed, err := Restore(t.Context(), host, d, before)
	if err != nil || len(changed) != 1 || !strings.HasPrefix(changed[0].Field, "MTU") {
		t.Errorf("changed %v, %v, want the MTU", changed, err)
	}
	if now, err = host.Snapshot(vf); err != nil || now.NetDevs[0].Settings.Group != 9 {
		t.Errorf("%+v, %v", now.NetDevs, err)
	}
}
