//go:build sriovlab

package checks

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/vm"
)

// pf is a PF of the guest; its place in pfs is its NUMA node.
type pf struct {
	address  string
	resource string // under which its VFs are advertised
	vfs      []string
}

var pfs = []pf{newPF(0, "lab.example/left"), newPF(1, "lab.example/right")}

// ownMAC is a VF that may choose its MAC: no check sets one through its PF. Where one is
// set so, igb lets the VF have no other until it is made anew.
var ownMAC = pfs[1].vfs[0]

func newPF(index int, resource string) pf {
	address, vfs := vm.Functions(index)
	return pf{address, resource, vfs}
}

// renew makes the PF's VFs anew, with new MACs, and brings PF and VFs to rest. Their
// devices get the names that they had, since those are free.
func (p pf) renew() error {
	uplink, err := findLink(p.address)
	if err == nil {
		err = netlink.LinkSetUp(uplink) // which a PF is not whose driver was bound just now
	}
	if err != nil {
		return err
	}
	for _, count := range []string{"0", fmt.Sprint(len(p.vfs))} {
		if err := p.attribute("sriov_numvfs", count); err != nil {
			return err
		}
	}
	return p.settle()
}

// TestMain brings the VFs to rest: an igbvf tells its PF its MAC when it is first
// set up, which would otherwise look like a trace of the first pod that had it.
func TestMain(m *testing.M) {
	flag.Parse()
	if list := flag.Lookup("test.list"); list.Value.String() != "" {
		os.Exit(m.Run()) // outside the guest
	}
	os.Exit(atRest(m.Run))
}

// atRest runs checks on VFs that are at rest. They are brought there once in a boot,
// since checks leave them so, and again after some that have failed, or ended early.
func atRest(checks func() int) int {
	const settled = "/run/settled"
	if err := os.Remove(settled); err != nil {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := checks()
	if code == 0 {
		if err := os.WriteFile(settled, nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func settle() error {
	for _, p := range pfs {
		if err := p.settle(); err != nil {
			return err
		}
	}
	return nil
}

func (p pf) settle() error {
	for _, vf := range p.vfs {
		link, err := findLink(vf)
		if err == nil {
			err = errors.Join(netlink.LinkSetUp(link), netlink.LinkSetDown(link))
		}
		if err != nil {
			return fmt.Errorf("settle %s: %w", vf, err)
		}
	}
	return nil
}

// findLink returns the network device of a PCI function that is on the host.
func findLink(addr string) (netlink.Link, error) {
	names, err := os.ReadDir(filepath.Join("/sys/bus/pci/devices", addr, "net"))
	if err != nil {
		return nil, err
	}
	if len(names) != 1 {
		return nil, fmt.Errorf("%s has %d network devices on the host, want one", addr, len(names))
	}
	return netlinksafe.LinkByName(names[0].Name())
}

// linkOf is findLink for a function that must have one.
func linkOf(t *testing.T, addr string) netlink.Link {
	t.Helper()
	link, err := findLink(addr)
	if err != nil {
		t.Fatal(err)
	}
	return link
}
