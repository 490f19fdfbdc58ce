//go:build sriovlab

package checks

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// pf is a PF of the guest; its place in pfs is its NUMA node. The addresses
// follow from the guest's configuration: the bus behind the root port, and the
// igb's VF offset and stride.
type pf struct {
	address  string
	resource string // under which its VFs are advertised
	vfs      []string
}

var pfs = []pf{newPF("0000:21", "lab.example/left"), newPF("0000:41", "lab.example/right")}

func newPF(bus, resource string) pf {
	p := pf{address: bus + ":00.0", resource: resource}
	for i := range 7 {
		p.vfs = append(p.vfs, fmt.Sprintf("%s:%02x.%d", bus, 0x10+i/4, i%4*2))
	}
	return p
}

// linkOf returns the network device of a PCI function that is on the host.
func linkOf(t *testing.T, addr string) netlink.Link {
	t.Helper()
	names, err := os.ReadDir(filepath.Join("/sys/bus/pci/devices", addr, "net"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%s has %d network devices on the host, want one: %v", addr, len(names), err)
	}
	link, err := netlinksafe.LinkByName(names[0].Name())
	if err != nil {
		t.Fatal(err)
	}
	return link
}
