package verify

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
	"github.com/manifold-cni/manifold/test/harness"
)

func TestChanged(t *testing.T) {
	before := sriov.NetDev{Name: "eth3", Settings: &sriov.Settings{AltNames: []string{"enp33s16f4"}}}
	as := func(name, alias string, altNames ...string) *netlink.LinkAttrs {
		return &netlink.LinkAttrs{Name: name, Alias: alias, AltNames: altNames}
	}
	for name, tc := range map[string]struct {
		now   *netlink.LinkAttrs
		alias string
		want  string
	}{
		"as it was made":                   {as("net1", "eth3", "enp33s16f4"), "eth3", ""},
		"another delegate's alias":         {as("net1", "whatever"), "", ""},
		"renamed":                          {as("mine0", "eth3"), "eth3", "named mine0"},
		"renamed, the name an alternative": {as("mine0", "eth3", "net1"), "eth3", "named mine0"},
		"another alias":                    {as("net1", "eth0"), "eth3", `alias "eth0", not "eth3"`},
		"no alias":                         {as("net1", ""), "eth3", `alias "", not "eth3"`},
		"an alternative name of the host":  {as("net1", "eth3", "enp33s16f4", "cni0"), "eth3", "alternative name cni0"},
	} {
		t.Run(name, func(t *testing.T) {
			if why := changed(tc.now, "net1", tc.alias, before); !strings.Contains(why, tc.want) || (why == "") != (tc.want == "") {
				t.Errorf("%q, want %q", why, tc.want)
			}
		})
	}
	older := sriov.NetDev{Name: "eth3"}
	if why := changed(as("net1", "eth3", "enp33s16f4"), "net1", "eth3", older); why != "" {
		t.Errorf("of a record without alternative names: %q", why)
	}
}

// addLink adds a link to the network namespace of the calling thread.
func addLink(name string, altNames ...string) error {
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "peer"}
	err := netlink.LinkAdd(l)
	for _, alt := range altNames {
		err = errors.Join(err, netlink.LinkAddAltName(l, alt))
	}
	return err
}

// onHost fails the test unless the host has a link of that name without alternative
// names, and deletes the link: the deletion of its pod would do so only some time later.
func onHost(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil || len(l.Attrs().AltNames) != 0 {
		t.Fatalf("on the host: %+v, %v", l, err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
}

// A link goes to the host under its former name, whatever the pod named it and its
// other links. The pod's own interface under the VF's name stays where it is.
func TestMoveOut(t *testing.T) {
	pod, must := newPod(t)
	must(addLink("cni0"))
	must(pod.Do(func() error {
		return errors.Join(addLink("eth3"), addLink("net1", "decoy0"), addLink("cni0", "lo0", "wan"))
	}))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()
	own, err := box.link("cni0")
	must(err)
	before := sriov.NetDev{Name: "eth3", Settings: &sriov.Settings{}}
	must(box.moveOut(own.Attrs(), before))
	onHost(t, "eth3")
	a := &plan.Attachment{IfName: "net1", Device: &plan.Device{ID: vf, PCIAddress: vf, PF: pf}}
	for _, moved := range []bool{true, false} { // false: as with a macvlan, which its delegate deletes
		why, err := box.Evict(sriov.FS{}, a, &sriov.Snapshot{NetDevs: []sriov.NetDev{before}}, "eth3", func() bool { return moved })
		must(err)
		if (why != "") != moved {
			t.Errorf("a decoy, VF moved in %v: %q", moved, why)
		}
	}
	for _, name := range []string{"net1", "eth3"} {
		there, err := box.Exists(name)
		must(err)
		if !there {
			t.Errorf("the pod's own %s is gone", name)
		}
	}
}

// A pod cannot keep a link by giving links more alternative names than the netlink
// library can read.
func TestMoveOutOfManyNames(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	pod, must := newPod(t)
	names := 0
	must(pod.Do(func() (err error) {
		names, err = harness.AddManyNames("net1")
		return err
	}))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()
	links, err := box.links.Links()
	must(err)
	if len(links) != 3 {
		t.Errorf("%d links, want lo and two", len(links))
	}
	i, err := box.look("net1", false)
	must(err)
	if there, err := box.Exists("absent"); !i.Exists || there || err != nil {
		t.Errorf("%+v, and one that is not there %v, %v", i, there, err)
	}
	own, err := box.link("net1")
	must(err)
	before := sriov.NetDev{Name: "eth3", Settings: &sriov.Settings{}}
	if why := changed(own.Attrs(), "net1", "", before); why == "" || len(own.Attrs().AltNames) != names {
		t.Errorf("%d names: %q", len(own.Attrs().AltNames), why)
	}
	must(box.moveOut(own.Attrs(), before))
	onHost(t, "eth3")
}

// A VF is known by its PCI function even when a virtio device stands between function
// and netdev: it is not taken for a VF that the pod has hidden.
func TestLinksOfAFunction(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddIGB()
	tree.AddFunction(sriovtest.Function{Address: "0000:00:03.1", Driver: "virtio-pci", Virtio: "virtio2", NetDev: "eth0"})
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	var links []netlink.Link
	for name, parent := range map[string]string{"net1": "virtio2", "net2": vf, "net3": "virtio9"} {
		links = append(links, &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name, ParentDev: parent}})
	}
	links = append(links, &netlink.IPoIB{LinkAttrs: netlink.LinkAttrs{Name: "child", ParentDev: vf, ParentIndex: 7}})
	for address, want := range map[string]string{"0000:00:03.1": "net1", vf: "net2"} {
		own, err := (&Sandbox{}).standingOn(tree.FS(), address, links)
		if err != nil || len(own) != 1 || own[0].Attrs().Name != want {
			t.Errorf("%s: %v, %v", address, own, err)
		}
	}
}
