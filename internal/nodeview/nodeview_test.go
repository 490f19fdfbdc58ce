package nodeview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

const result = `{"cniVersion":"1.0.0","interfaces":[{"name":"net1","mac":"02:00:00:00:00:01","mtu":9000,"sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`

// begin writes the journal of a pod whose attachments each use a VF of the igb layout,
// and records the steps.
func begin(t *testing.T, dir journal.Dir, pod, netns string, devices []string, steps ...journal.Step) {
	t.Helper()
	p := &plan.Plan{Version: plan.Version, Pod: plan.Pod{Namespace: "ns", Name: pod, UID: "uid-" + pod}, ContainerID: pod, NetNS: netns}
	for i, d := range devices {
		p.Attachments = append(p.Attachments, plan.Attachment{
			Name: fmt.Sprintf("ns/%d", i), IfName: fmt.Sprintf("net%d", i),
			Device: &plan.Device{Resource: "r/x", ID: d, PCIAddress: d, Container: "c"}, Want: plan.Want{Verify: plan.VerifyEnforce},
		})
	}
	e, err := dir.Begin(t.Context(), journal.Key{ContainerID: pod, IfName: "eth0"}, p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if err := e.Append(s); err != nil {
			t.Fatal(err)
		}
	}
}

// read reads a node of the igb layout.
func read(t *testing.T, dir journal.Dir, holders map[string]Holder, err error, found ...reconcile.Finding) *View {
	t.Helper()
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	return Read(t.Context(), Sources{
		Node: "node1", Journal: dir, SysRoot: tree.Root(),
		Holders:   func(context.Context) (map[string]Holder, error) { return holders, err },
		Findings:  func(context.Context) ([]reconcile.Finding, error) { return found, nil },
		Proposals: propose,
	})
}

// propose proposes to leave everything alone.
func propose(_ context.Context, found []reconcile.Finding) (out []reconcile.Proposal) {
	for _, f := range found {
		out = append(out, reconcile.Proposal{Finding: f, Left: true})
	}
	return out
}

func TestStates(t *testing.T) {
	dir := journal.Dir{Path: t.TempDir()}
	attached := []journal.Step{{Phase: journal.Trying}, {Phase: journal.Attached, Result: json.RawMessage(result)}}
	verified := append(attached[:2:2], journal.Step{Phase: journal.Verified, Checked: []string{"mac", "mtu"}})
	for name, c := range map[string]struct {
		netns string
		steps []journal.Step
		want  string
	}{
		"a-waiting":  {"/proc/self/ns/net", nil, "waiting"},
		"b-trying":   {"/proc/self/ns/net", attached[:1], "trying"},
		"c-attached": {"/proc/self/ns/net", attached, "attached 10.0.0.2 9000"},
		"d-verified": {"/proc/self/ns/net", verified, "attached 10.0.0.2 9000 verified mac mtu"},
		"d-differs": {"/proc/self/ns/net", append(verified[:3:3], journal.Step{Phase: journal.Routed}, journal.Step{Phase: journal.Verified, Checked: []string{"mac"}, Differs: []string{"no mtu"}}),
			"attached 10.0.0.2 9000 verified mac but no mtu"},
		"e-releasing": {"/proc/self/ns/net", append(verified[:3:3], journal.Step{Phase: journal.Releasing}), "releasing 10.0.0.2 9000 verified mac mtu"},
		"f-failed": {"/proc/self/ns/net", append(attached[:2:2], journal.Step{Phase: journal.ReleaseFailed, Error: "busy"}),
			"release-failed 10.0.0.2 9000: busy"},
		"g-gone":     {"/proc/nosuch", attached, "attached 10.0.0.2 9000 gone"},
		"g-hidden":   {"/nonexistent/netns", attached, "attached 10.0.0.2 9000"}, // its directory is not visible
		"h-released": {"/proc/self/ns/net", append(attached[:2:2], journal.Step{Phase: journal.Released}), ""},
	} {
		begin(t, dir, name, c.netns, []string{"0000:21:10.0"}, c.steps...)
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, a := range read(t, dir, nil, nil).Attachments {
				if a.Pod.Name == name {
					got = render(a)
				}
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func render(a Attachment) string {
	out := strings.Join(append([]string{a.State}, a.Addresses...), " ")
	if a.MTU != 0 {
		out += fmt.Sprint(" ", a.MTU)
	}
	if a.VerifiedAt != nil {
		out += " verified " + strings.Join(a.Verified, " ")
	}
	if len(a.Differs) > 0 {
		out += " but " + strings.Join(a.Differs, " ")
	}
	if a.Error != "" {
		out += ": " + a.Error
	}
	if a.Gone != "" {
		out += " gone"
	}
	return out
}

func TestDevicesAreJoined(t *testing.T) {
	dir := journal.Dir{Path: t.TempDir()}
	begin(t, dir, "app", "/proc/self/ns/net", []string{"0000:21:10.0", "0000:21:10.2", "0000:21:10.4"}, journal.Step{Phase: journal.Trying}, journal.Step{Attachment: 1, Phase: journal.Trying})
	drift := reconcile.Finding{Kind: reconcile.Drifted, Device: "0000:21:10.2", Text: "VLAN"}
	v := read(t, dir, map[string]Holder{
		"0000:21:10.0": {PodUID: "uid-app", Container: "c", Resource: "r/x"},
		"0000:21:10.2": {PodUID: "another", Container: "d", Resource: "r/y"},
		"0000:21:10.6": {Pod: "ns/later", Container: "c", Resource: "r/x"},
	}, nil, drift)
	var got []string
	for _, d := range v.Devices[:5] {
		h := Holder{}
		if d.Holder != nil {
			h = *d.Holder
		}
		got = append(got, fmt.Sprintf("%s %d %d %s %s pod %s uid %s %d", d.Address, d.VFIndex, d.NUMANode, d.Use, d.Sandbox, h.Pod, h.PodUID, len(d.Findings)))
	}
	want := []string{
		"0000:21:10.0 0 0 attached app pod ns/app uid uid-app 0",
		"0000:21:10.2 1 0 attached app pod  uid another 1", // the kubelet disagrees, and its word stays
		"0000:21:10.4 2 0 free  pod  uid  0",               // planned, but not tried yet
		"0000:21:10.6 3 0 allocated  pod ns/later uid  0",
		"0000:21:11.0 4 0 free  pod  uid  0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(v.Devices) != 14 || len(v.Problems) != 0 {
		t.Errorf("%d devices, problems %v", len(v.Devices), v.Problems)
	}
}

func TestSourcesThatFail(t *testing.T) {
	dir := journal.Dir{Path: t.TempDir()}
	if err := os.WriteFile(filepath.Join(dir.Path, "c@eth0.journal"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := read(t, dir, nil, errors.New("the kubelet is away"))
	if len(v.Problems) != 2 || !strings.Contains(v.Problems[0], "sandbox c") || !strings.Contains(v.Problems[1], "the kubelet is away") {
		t.Errorf("%q", v.Problems)
	}
	if v.Devices[0].Use != UseUnknown {
		t.Errorf("a device without a source is %s", v.Devices[0].Use)
	}
	v = Read(t.Context(), Sources{
		SysRoot: "/nonexistent", Holders: func(context.Context) (map[string]Holder, error) { return nil, nil },
		Findings: func(context.Context) ([]reconcile.Finding, error) { return nil, errors.New("no netlink") }, Proposals: propose,
	})
	if len(v.Problems) != 2 {
		t.Errorf("%q", v.Problems)
	}
}

func TestDecode(t *testing.T) {
	for text, ok := range map[string]bool{`{"version":1,"node":"n"}`: true, `{"version":2}`: false, `{}`: false, `x`: false} {
		if _, err := Decode([]byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A device's driver decides whether there is an interface.
func TestExplanationSaysWhoDrivesADevice(t *testing.T) {
	for driver, want := range map[string]string{
		"iavf":     "VF 3 of 0000:5e:00.0, driver iavf",
		"vfio-pci": "VF 3 of 0000:5e:00.0, bound to vfio-pci: there will be no net1, a program in the pod drives it; for an interface bind it to its kernel driver",
		"":         "VF 3 of 0000:5e:00.0, without a driver: bind it to its kernel driver, or to vfio-pci for a program",
	} {
		d := &plan.Device{ID: "0000:5e:01.3", PF: "0000:5e:00.0", VFIndex: 3, Driver: driver, Userspace: driver == "vfio-pci"}
		e := &Explanation{}
		e.Conclude(&plan.Plan{Attachments: []plan.Attachment{{Name: "ns/n", IfName: "net1", Reason: "selected", Device: d}}}, nil)
		if diff := cmp.Diff([]Step{{About: "interface net1", Text: "ns/n, selected"}, {About: "device 0000:5e:01.3", Text: want}}, e.Steps); diff != "" {
			t.Errorf("driver %q: %s", driver, diff)
		}
	}
}
