//go:build sriovlab

package checks

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// hardwareState is the state of all VFs, one line each: driver, network devices on the
// host with their MAC, MTU and flags, and the PF's settings for the VF. A pod must
// leave it as it found it. It leaves out whether a PF knows the MAC that a VF has
// chosen: igb forgets that MAC if, on a busy machine, it notices late that the VF was
// reset, and learns it again when the VF is next set up.
type hardwareState []string

// hardware returns the state of all VFs and of the host's other network devices.
func hardware(t *testing.T) hardwareState {
	t.Helper()
	var out hardwareState
	for _, p := range pfs {
		uplink := linkOf(t, p.address)
		for i, vf := range p.vfs {
			f := readFunction(t, vf)
			line, kept := fmt.Sprintf("%s driver %s", vf, f.Driver), uplink.Attrs().Vfs[i]
			for _, name := range f.NetDevs {
				link, err := netlinksafe.LinkByName(name)
				if err != nil {
					t.Fatal(err)
				}
				a := link.Attrs()
				if bytes.Equal(kept.Mac, make(net.HardwareAddr, 6)) {
					kept.Mac = a.HardwareAddr
				}
				line += fmt.Sprintf(" device %s %s mtu %d flags %s alias %q", a.Name, a.HardwareAddr, a.MTU, a.Flags, a.Alias)
			}
			out = append(out, fmt.Sprintf("%s PF side %+v", line, kept))
		}
	}
	return append(out, others(t)...)
}

// others returns the host's network devices that are neither PCI functions nor bridges,
// which the bridge plugin leaves on purpose. These are the host's ends of pods'
// interfaces.
func others(t *testing.T) []string {
	t.Helper()
	links, err := netlinksafe.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		if _, err := os.Stat(filepath.Join("/sys/class/net", l.Attrs().Name, "device")); err != nil && l.Type() != "bridge" {
			out = append(out, l.Type()+" "+l.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out
}

// same fails unless the state is still as it was before.
func (before hardwareState) same(t *testing.T) {
	t.Helper()
	now := hardware(t)
	for _, line := range before {
		if !slices.Contains(now, line) {
			t.Errorf("before: %s", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			t.Errorf("now:    %s", line)
		}
	}
}
