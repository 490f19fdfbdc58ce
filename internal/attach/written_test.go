package attach

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/test/harness"
)

// A VF that a configuration names, in whatever form, belongs to the sandbox that has
// it. A free one is claimed, and restored when it is given back.
func TestVFThatAConfigurationNamesHasOneOwner(t *testing.T) {
	for _, written := range []string{vfAddress, strings.ToUpper(vfAddress), "/sys/devices/pci0000:00/0000:00:01.0/" + vfAddress} {
		h := newHardware(t, "")
		h.ns = "/proc/self/ns/net"
		before := h.attach("owner")
		used := h.vf()
		h.written = written
		if err := h.claim("thief"); !cnierr.Is(err, cnierr.TryAgain) || !strings.Contains(err.Error(), "sandbox owner@eth0 still has it") {
			t.Errorf("%s: while its owner lives: %v", written, err)
		}
		h.must(h.del("thief"))
		h.stands(used)
		h.ends("owner")
		h.must(h.del("owner"))
		h.stands(before)
		h.attach("next")
		h.holds("next")
		h.must(h.del("next"))
		h.stands(before)
		h.nothingLeft()
	}
}

// While a netdev is on the host, its name identifies the VF.
func TestVFsThatAConfigurationNames(t *testing.T) {
	h := newHardware(t, "")
	r, err := h.Engine.begin(t.Context(), h.invocation("asks"))
	h.must(err)
	defer func() { h.must(r.end(true, nil)) }()
	allocated := &plan.Device{ID: vfAddress, PCIAddress: vfAddress, PF: pfAddress}
	for name, tc := range map[string]struct {
		a    plan.Attachment
		want string
	}{
		"by network device": {plan.Attachment{Written: []string{vfNetDev}}, vfAddress},
		"the PF":            {plan.Attachment{Written: []string{uplink, pfAddress}}, ""},
		"none of the node":  {plan.Attachment{Written: []string{"0000:99:00.1", "eth99", "02:00:00:00:00:99", "../../x", "/sys/devices/"}}, ""},
		"its own":           {plan.Attachment{Device: allocated, Written: []string{vfNetDev}}, vfAddress},
		"another beside":    {plan.Attachment{Device: allocated, Written: []string{"0000:21:10.0"}}, "names VF 0000:21:10.0"},
		"two":               {plan.Attachment{Written: []string{vfAddress, "0000:21:10.0"}}, "names VF 0000:21:10.0"},
	} {
		p := &plan.Plan{Attachments: []plan.Attachment{tc.a}}
		got := ""
		if err := r.ownWritten(p); err != nil {
			got = err.Error()
		} else if d := p.Attachments[0].Device; d != nil {
			got = d.PCIAddress
		}
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// A VLAN on a VF has the VF's MAC; the MAC still identifies the VF.
func TestVFByItsMAC(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	h := newHardware(t, "")
	r, err := h.Engine.begin(t.Context(), h.invocation("asks"))
	h.must(err)
	defer func() { h.must(r.end(true, nil)) }()
	mac, err := net.ParseMAC("02:00:00:00:00:01")
	h.must(err)
	own := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: vfNetDev, HardwareAddr: mac}, PeerName: "peer"}
	h.must(netlink.LinkAdd(own))
	h.must(netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "upper", ParentIndex: own.Index, HardwareAddr: mac}, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	for written, want := range map[string]string{mac.String(): vfAddress, "02-00-00-00-00-01": vfAddress, "02:00:00:00:00:99": ""} {
		f, err := r.vfWritten(written)
		if err != nil || (f == nil) != (want == "") || f != nil && f.Address != want {
			t.Errorf("%s: %+v, %v", written, f, err)
		}
	}
}
