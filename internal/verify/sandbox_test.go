package verify

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const index = 77 // of the device on the host, and of the pod's own link

// newPod creates a pod's network namespace, which is deleted when the test ends, and
// returns a function that fails the test on an error.
func newPod(tb testing.TB) (pod *harness.NetNS, must func(error)) {
	tb.Helper()
	must = func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	pod, err := harness.NewNetNS("pod")
	must(err)
	tb.Cleanup(func() { must(pod.Delete()) })
	return pod, must
}

func bridge(name string) netlink.Link {
	return &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}
}

// Look answers from the kernel, for a device that stays on the host and a pod that has
// a link with the same index.
func TestWhatStandsOnTheHostsDevice(t *testing.T) {
	pod, must := newPod(t)
	must(netlink.LinkAdd(bridge("vf0")))
	file, err := os.Open(pod.Path)
	must(err)
	defer file.Close()
	stacked := netlink.LinkAttrs{Name: "net1", ParentIndex: index}
	moved := stacked
	moved.Name, moved.Namespace = "net2", netlink.NsFd(file.Fd())
	must(netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: moved, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	must(pod.Do(func() error {
		err := errors.Join(netlink.LinkAdd(bridge("trunk0")), netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: stacked, Mode: netlink.MACVLAN_MODE_BRIDGE}))
		return errors.Join(err, netlink.LinkAddAltName(bridge("trunk0"), "net3"))
	}))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()

	d := &plan.Device{Resource: "r/x", ID: "vf0"}
	before, err := Capture(sriov.Host{}, d)
	must(err)
	for ifName, want := range map[string]string{
		"net1": "network device vf0 of the allocated device: wanted in the sandbox, found on the host",
		"net2": "",
		// Programs do not find this name in the list of interfaces.
		"net3": "interface net3: wanted present, found absent, network device vf0 of the allocated device: wanted in the sandbox, found on the host",
	} {
		a := &plan.Attachment{IfName: ifName, Device: d}
		f, err := Look(sriov.Host{}, box, a, []string{ifName}, before)
		must(err)
		if got := sriov.Sentences(Compare(a, Claim{Interface: true}, before, f).Findings); got != want {
			t.Errorf("%s: %q, want %q", ifName, got, want)
		}
	}
	f, err := Look(sriov.Host{}, box, &plan.Attachment{IfName: "net1"}, []string{"net2", "net3"}, nil)
	if err != nil || !slices.Equal(f.Missing, []string{"net3"}) {
		t.Errorf("of the claimed interfaces %q are missing, %v", f.Missing, err)
	}
	if taken, err := box.Exists("net3"); err != nil || !taken {
		t.Errorf("the alternative name can be given away: %v", err)
	}
	// Compare decides whether the interface must exist.
	r, err := box.Carrier(&plan.Attachment{IfName: "net4", Want: plan.Want{Carrier: plan.CarrierRequire}}, time.Now())
	if err != nil || len(r.Findings)+len(r.Warnings)+len(r.Checked) > 0 {
		t.Errorf("the carrier of no interface: %+v, %v", r, err)
	}
}

// deaf are the host's network devices while the kernel answers no question about them.
type deaf struct{ sriov.Kernel }

var errDeaf = errors.New("no buffer space available")

func (deaf) Link(string) (*sriov.Link, error) { return nil, errDeaf }

// A device of which nobody knows whether it is still on the host does not count as moved.
func TestDeviceThatCannotBeLookedAt(t *testing.T) {
	pod, must := newPod(t)
	must(pod.Do(func() error { return addLink("net1") }))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()
	d := &plan.Device{Resource: "r/x", ID: "x1"}
	before := &sriov.Snapshot{VFIndex: -1, NetDevs: []sriov.NetDev{{Name: "vf0", Index: index}}}
	f, err := Look(sriov.Host{Links: deaf{}}, box, &plan.Attachment{IfName: "net1", Device: d}, nil, before)
	if !errors.Is(err, errDeaf) {
		t.Errorf("found %+v, %v", f, err)
	}
}

// The kernel does not say in which network namespace the parent of an IPoIB child is.
func TestWhatAnIPoIBChildStandsOn(t *testing.T) {
	on := netlink.LinkAttrs{ParentIndex: 7, NetNsID: -1}
	for _, tc := range []struct {
		link netlink.Link
		want int
	}{
		{&netlink.IPoIB{LinkAttrs: on}, 7},
		{&netlink.Macvlan{LinkAttrs: on}, 0},
		{&netlink.IPoIB{LinkAttrs: netlink.LinkAttrs{NetNsID: -1}}, 0},
	} {
		if got, err := (&Sandbox{}).lower(tc.link); got != tc.want || err != nil {
			t.Errorf("%T on %d: %d, %v", tc.link, tc.link.Attrs().ParentIndex, got, err)
		}
	}
}

// BenchmarkVerify looks at an attachment in a real sandbox and compares it with plan
// and claim.
func BenchmarkVerify(b *testing.B) {
	const mac, address, mtu = "02:00:00:00:00:01", "10.0.0.2/24", 1400
	pod, must := newPod(b)
	must(pod.Do(func() error {
		hw, err := net.ParseMAC(mac)
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1", HardwareAddr: hw, MTU: mtu}, PeerName: "peer1"}
		addr, err2 := netlink.ParseAddr(address)
		return errors.Join(err, err2, netlink.LinkAdd(l), netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	}))
	box, err := OpenSandbox(pod.Path)
	must(err)
	defer box.Close()
	a := &plan.Attachment{IfName: "net1", Want: plan.Want{Verify: plan.VerifyEnforce, MAC: mac, MTU: mtu, IPs: []string{"10.0.0.2"}}}
	claim := Claim{Interface: true, MAC: mac, MTU: mtu, Addresses: []string{address}}
	b.ReportAllocs()
	for b.Loop() {
		f, err := Look(sriov.Host{}, box, a, nil, nil)
		must(err)
		if r := Compare(a, claim, nil, f); len(r.Findings) > 0 || len(r.Checked) == 0 {
			b.Fatalf("%+v", r)
		}
	}
}
