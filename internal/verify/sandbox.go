package verify

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// Sandbox is a view into a pod's network namespace. It enters the namespace once to
// open a socket, which stays there: a thread that enters and leaves for every question
// costs more than the question.
type Sandbox struct {
	path  string
	links *rtnl.Socket // nil when the namespace is gone
}

// OpenSandbox opens the network namespace at path. A namespace that does not exist (any
// more) has no interfaces.
func OpenSandbox(path string) (*Sandbox, error) {
	s := &Sandbox{path: path}
	if err := ns.IsNSorErr(path); errors.As(err, &ns.NSPathNotExistErr{}) || errors.As(err, &ns.NSPathNotNSErr{}) {
		return s, nil
	}
	err := ns.WithNetNSPath(path, func(ns.NetNS) (err error) {
		s.links, err = rtnl.Open()
		return err
	})
	if err != nil {
		return nil, sandboxError(err)
	}
	return s, nil
}

// Close closes the socket.
func (s *Sandbox) Close() {
	if s.links != nil {
		_ = s.links.Close()
	}
}

// Cookie returns the number by which the kernel knows the namespace, see
// [rtnl.Socket.Cookie]; 0 when the namespace is gone and on kernels that tell none.
func (s *Sandbox) Cookie() (uint64, error) {
	if s.links == nil {
		return 0, nil
	}
	cookie, err := s.links.Cookie()
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, sandboxError(err)
	}
	return cookie, nil
}

// Exists reports whether an interface has that name or alternative name: no other
// interface can get it then.
func (s *Sandbox) Exists(name string) (bool, error) {
	link, err := s.link(name)
	if err != nil {
		return false, sandboxError(err)
	}
	return link != nil, nil
}

func sandboxError(err error) error { return cnierr.New("inspect sandbox", cnierr.IO, "%w", err) }

// link returns the interface with that name or alternative name, nil when there is
// none.
func (s *Sandbox) link(name string) (netlink.Link, error) {
	if s.links == nil {
		return nil, nil
	}
	return s.links.Link(name)
}

// named returns the interface with that name, nil when there is none. An alternative
// name does not count: programs that list interfaces do not find it.
func (s *Sandbox) named(name string) (netlink.Link, error) {
	link, err := s.link(name)
	if err != nil || link == nil || link.Attrs().Name != name {
		return nil, err
	}
	return link, nil
}

// isChild reports whether a link is the child of an IPoIB device. A child has the same
// PCI function as its parent.
func isChild(link netlink.Link) bool { return link.Type() == "ipoib" && link.Attrs().ParentIndex != 0 }

// lower returns the index of the host's link that a link is stacked on, 0 for none. The
// kernel tells an index, and the namespace it belongs to if that is another one: a link
// of the sandbox may have the same index as a device on the host. For an IPoIB child it
// tells only the index, and the parent is the host's.
func (s *Sandbox) lower(link netlink.Link) (int, error) {
	a := link.Attrs()
	switch {
	case a.ParentIndex == 0:
		return 0, nil
	case a.NetNsID < 0 && isChild(link):
		return a.ParentIndex, nil
	case a.NetNsID < 0:
		return 0, nil
	}
	host, err := ns.GetCurrentNS()
	if err != nil {
		return 0, err
	}
	id, err := s.idOf(host)
	if err = errors.Join(err, host.Close()); err != nil || id != a.NetNsID {
		return 0, err
	}
	return a.ParentIndex, nil
}

// look reads one interface. hardware says that it may stand on a device.
func (s *Sandbox) look(name string, hardware bool) (Interface, error) {
	link, err := s.named(name)
	if err != nil || link == nil {
		return Interface{}, err
	}
	a := link.Attrs()
	out := Interface{Exists: true, Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, Parent: a.ParentDev}
	if out.Lower, err = s.lower(link); err != nil {
		return Interface{}, fmt.Errorf("link below %s: %w", name, err)
	}
	if out.Parent == "" && hardware {
		err := ns.WithNetNSPath(s.path, func(ns.NetNS) error {
			out.Parent = busInfo(name)
			return nil
		})
		if err != nil {
			return Interface{}, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	if out.Addresses, err = s.addresses(a.Index); err != nil {
		return Interface{}, fmt.Errorf("addresses of %s: %w", name, err)
	}
	return out, nil
}

// busInfo asks the driver which device the interface stands on, empty when it does not
// know. It serves kernels before 5.14, which lack IFLA_PARENT_DEV_NAME.
func busInfo(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	bus := unix.ByteSliceToString(info.Bus_info[:])
	if !sriov.IsAddress(bus) && !strings.Contains(bus, ".") && !strings.HasPrefix(bus, "virtio") {
		return "" // software drivers answer with words such as "N/A"
	}
	return bus
}
