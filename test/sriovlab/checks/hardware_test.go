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

// hardwareState is the state of all VFs in one line each: driver, network devices
// on the host with their MAC, MTU and flags, and what the PF has of the VF. It is
// what a pod must leave as it found it. Where a VF has its own MAC, whether its PF knows
// that is not looked at: igb forgets it when it comes to see late, on a busy machine, that
// the VF was reset, and is told again when the VF is next set up.
type hardwareState []string

// hardware reads the state of all VFs.
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

// others are the network devices of the host that are no PCI functions and no
// bridge, which the bridge plugin leaves on purpose: pods' own ends.
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

// same fails unless the state is as before.
func (before hardwareState) same(t *testing.T) {
	t.Helper()
	now := hardware(t)
	for _, line := range before {
		if !slices.Contains(now, line) {
			t.Errorf("was: %s", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			t.Errorf("is:  %s", line)
		}
	}
}
