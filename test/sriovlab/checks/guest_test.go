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

// pf is a PF of the guest. Its index in pfs is its NUMA node.
type pf struct {
	address  string
	resource string // its VFs are advertised under this name
	vfs      []string
}

var pfs = []pf{newPF(0, "lab.example/left"), newPF(1, "lab.example/right")}

// ownMAC is a VF that may choose its MAC: no check sets one through its PF. If a check
// did, igb would allow the VF no other MAC until the VF is recreated.
var ownMAC = pfs[1].vfs[0]

func newPF(index int, resource string) pf {
	address, vfs := vm.Functions(index)
	return pf{address, resource, vfs}
}

// renew recreates the PF's VFs, which gives them new MACs, and settles them. Their
// network devices get their old names, since those are free.
func (p pf) renew() error {
	uplink, err := findLink(p.address)
	if err == nil {
		err = netlink.LinkSetUp(uplink) // a PF whose driver has just been bound is down
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

// TestMain settles the VFs before the checks. An igbvf tells its PF its MAC when it is
// first set up, which would otherwise look like a trace of the first pod that had the
// VF.
func TestMain(m *testing.M) {
	flag.Parse()
	if list := flag.Lookup("test.list"); list.Value.String() != "" {
		os.Exit(m.Run()) // the lab lists the checks outside the guest
	}
	os.Exit(atRest(m.Run))
}

// atRest runs checks on settled VFs. It settles them once per boot, since checks leave
// VFs settled, and again after checks that failed or were cut off.
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

// settle brings each VF up and down once, so that its PF knows its MAC.
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

// findLink returns the network device of a PCI function, which must be on the host.
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

// linkOf is [findLink] for tests: it fails the test if there is no device.
func linkOf(t *testing.T, addr string) netlink.Link {
	t.Helper()
	link, err := findLink(addr)
	if err != nil {
		t.Fatal(err)
	}
	return link
}
