package sriov

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrNotPCI is wrapped by the errors of methods that look for the PCI function
// under something that stands on none, as a bridge, a veth or a USB adapter.
var ErrNotPCI = errors.New("does not stand on a PCI function")

// netDevs returns the network devices of the function listed in n: those in its
// net directory, and those of a virtio device, which the kernel puts as a device
// of its own between the PCI function and the network device.
func (s FS) netDevs(n *node) []string {
	names := n.children("net")
	for _, name := range n.names {
		if !strings.HasPrefix(name, "virtio") {
			continue
		}
		// Only a virtio network device has a net directory, and only while the
		// namespace holds it.
		children, err := list(filepath.Join(n.dir, name, "net"))
		if err == nil {
			names = append(names, children...)
		}
	}
	slices.SortFunc(names, CompareIDs)
	return names
}

// PFNetDev returns the name of the network device through which the VF at vfAddr
// is configured, which is its PF's uplink as [FS.Uplink] finds it, and the VF's
// index there.
//
// The error wraps [ErrNotVF] when vfAddr is another PCI function, [ErrAddress]
// when it is malformed, and satisfies errors.Is(err, [io/fs.ErrNotExist]) when
// the VF is not there or the PF has no network device in this namespace, for
// example because it is itself bound to a userspace driver.
func (s FS) PFNetDev(vfAddr string) (name string, index int, err error) {
	a, err := ParseAddress(vfAddr)
	if err != nil {
		return "", -1, fmt.Errorf("sriov: %w", err)
	}
	var pf string
	err = settle(func() error {
		pf, index, err = s.parent(a)
		return err
	})
	if err != nil {
		return "", -1, fmt.Errorf("sriov: PCI function %s: %w", a, err)
	}
	name, err = s.Uplink(pf)
	if err != nil {
		return "", -1, fmt.Errorf("sriov: VF %s: %w", a, err)
	}
	return name, index, nil
}

// parent returns the PF of the function at addr and the function's index there.
func (s FS) parent(addr string) (pf string, index int, err error) {
	n, err := openNode(s.device(addr))
	if err != nil {
		return "", -1, err
	}
	if pf = n.address("physfn"); n.err != nil {
		return "", -1, n.err
	}
	if pf == "" {
		return "", -1, ErrNotVF
	}
	index, err = s.vfIndex(pf, addr)
	return pf, index, err
}

// Uplink returns the network device of the PF at pf that stands for its physical
// port, and through which its VFs are configured.
//
// Usually it is the only one. In switchdev mode the representors of VFs and
// subfunctions stand beside it; they are told apart by phys_port_name:
//
//   - p0, or p0s1 for a split port, is an uplink;
//   - a device without a name is the uplink of a driver that names no ports;
//   - pf0vf3, c1pf0sf88, p0pf0vf3 and the like are representors, never chosen;
//   - any other name, such as the bare VF number that older kernels gave to
//     representors, is chosen only where nothing better stands.
//
// Of several equally good ones (two ports on one function, as on ConnectX-3) it is
// the one with the lowest dev_port, then dev_id. If that does not decide either,
// Uplink refuses to guess. With no candidate the error satisfies
// errors.Is(err, [io/fs.ErrNotExist]).
func (s FS) Uplink(pf string) (string, error) {
	a, err := ParseAddress(pf)
	if err != nil {
		return "", fmt.Errorf("sriov: %w", err)
	}
	var ports []port
	err = settle(func() error {
		ports, err = s.ports(a)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sriov: network devices of PCI function %s: %w", a, err)
	}
	if len(ports) == 0 {
		return "", fmt.Errorf("sriov: PCI function %s has no network device of its own in this network namespace: %w", a, fs.ErrNotExist)
	}
	slices.SortFunc(ports, port.compare)
	if len(ports) > 1 && ports[0].compare(ports[1]) == 0 {
		return "", fmt.Errorf("sriov: PCI function %s: cannot tell whether %s or %s is the uplink", a, ports[0].name, ports[1].name)
	}
	return ports[0].name, nil
}

// ports returns the network devices of the function that may be its uplink.
func (s FS) ports(addr string) ([]port, error) {
	n, err := openNode(s.device(addr))
	if err != nil {
		return nil, err
	}
	names := n.children("net")
	if n.err != nil {
		return nil, n.err
	}
	var out []port
	for _, name := range names {
		p, err := readPort(filepath.Join(n.dir, "net", name))
		if err != nil {
			return nil, err
		}
		if p.kind != portRepresentor {
			out = append(out, p)
		}
	}
	return out, nil
}

// The kinds of port, from the best candidate for an uplink to the worst.
const (
	portPhysical = iota
	portUnnamed
	portOther
	portRepresentor
)

// port is a network device as a candidate for being its function's uplink.
type port struct {
	name           string
	kind           int
	devPort, devID int
}

func (p port) compare(q port) int {
	return cmp.Or(cmp.Compare(p.kind, q.kind), cmp.Compare(p.devPort, q.devPort), cmp.Compare(p.devID, q.devID))
}

// readPort reads what tells ports apart. One that went meanwhile is an error: what
// cannot be read of it says nothing, and a representor would pass for an uplink.
func readPort(dir string) (port, error) {
	number := func(name string) int {
		text, err := readAttr(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		i, err := strconv.ParseInt(text, 0, 32) // dev_id is hexadecimal with 0x
		if err != nil {
			return 0
		}
		return int(i)
	}
	p := port{name: filepath.Base(dir), devPort: number("dev_port"), devID: number("dev_id")}
	name, err := readAttr(filepath.Join(dir, "phys_port_name"))
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EOPNOTSUPP): // the latter two where its driver names no ports
		p.kind = portKind(name)
	default:
		p.kind = portOther
	}
	_, err = os.Stat(dir)
	return p, err
}

// portKind classifies a phys_port_name. The grammar is devlink's: p0 and p0s1 are
// physical ports; pf0, pf0vf3, pf0sf88, each with an optional controller c1 in
// front, are the host side of PCI ports. BlueField calls its host PF pf0hpf, and sfc
// has the physical port in front, p0pf0vf3.
func portKind(name string) int {
	if name == "" {
		return portUnnamed
	}
	if rest, ok := cutPart(name, "p"); ok {
		if rest == "" {
			return portPhysical
		}
		if _, ok := cutPart(rest, "pf"); ok {
			return portRepresentor
		}
		if rest, ok = cutPart(rest, "s"); ok && rest == "" {
			return portPhysical
		}
		return portOther
	}
	if rest, ok := cutPart(name, "c"); ok {
		name = rest
	}
	if _, ok := cutPart(name, "pf"); ok {
		return portRepresentor
	}
	return portOther
}

// cutPart cuts prefix and the decimal number after it from the front of s.
func cutPart(s, prefix string) (rest string, ok bool) {
	s, ok = strings.CutPrefix(s, prefix)
	if !ok || s == "" || !isDigit(s[0]) {
		return "", false
	}
	return strings.TrimLeft(s, "0123456789"), true
}

// OfNetDev returns the address of the PCI function that the named network device
// stands on, directly or through a virtio or auxiliary device (a subfunction's
// network device stands on its PF).
//
// The error wraps [ErrNotPCI] for a device that stands on no PCI function: virtual
// ones, but also a USB adapter, although its host controller is one. It satisfies
// errors.Is(err, [io/fs.ErrNotExist]) when the network namespace has no such
// device, and [io/fs.ErrInvalid] when name cannot be one.
func (s FS) OfNetDev(name string) (string, error) {
	if !validNetDev(name) {
		return "", fmt.Errorf("sriov: %s is not a network device name: %w", quote(name), fs.ErrInvalid)
	}
	class := s.path("class/net")
	target, err := os.Readlink(filepath.Join(class, name))
	if err != nil {
		return "", fmt.Errorf("sriov: network device %s: %w", name, err)
	}
	// The link leads to DEVICE/net/NAME.
	dir := filepath.Dir(filepath.Dir(filepath.Join(class, target)))
	addr, err := s.pciAncestor(dir)
	if err != nil {
		return "", fmt.Errorf("sriov: network device %s: %w", name, err)
	}
	return addr, nil
}

// OfParent returns the address of the PCI function whose network device has that
// parent device, as the kernel names it (IFLA_PARENT_DEV_NAME): of a virtio device,
// which the kernel puts between, that of the function below. Any other name comes
// back as it is.
func (s FS) OfParent(name string) string {
	if !strings.HasPrefix(name, "virtio") {
		return name
	}
	devices := s.path("bus/virtio/devices")
	target, err := os.Readlink(filepath.Join(devices, name))
	if err != nil {
		return name
	}
	addr, err := s.pciAncestor(filepath.Join(devices, target))
	if err != nil {
		return name // on another bus
	}
	return addr
}

// VFOfNetDev returns the VF whose network device has this name.
//
// The error wraps [ErrNotVF] where the network device is that of another PCI
// function, or stands on a part of one as a subfunction's does; else it is that of
// [FS.OfNetDev]. A network device that is in another network namespace is not there,
// and its name may be another's meanwhile.
func (s FS) VFOfNetDev(name string) (*Function, error) {
	addr, err := s.OfNetDev(name)
	if err != nil {
		return nil, err
	}
	f, err := s.Function(addr)
	if err != nil {
		return nil, err
	}
	if !f.IsVF() || !slices.Contains(f.NetDevs, name) {
		return nil, fmt.Errorf("sriov: network device %s of PCI function %s: %w", name, addr, ErrNotVF)
	}
	return f, nil
}

// FunctionNamed returns the PCI function that a device plugin's ID names: by its PCI
// address, or, as some plugins call a VF, by its network device. The error is that of
// [FS.Function] for an address, else that of [FS.VFOfNetDev].
func (s FS) FunctionNamed(id string) (*Function, error) {
	if !IsAddress(id) {
		return s.VFOfNetDev(id)
	}
	return s.Function(id)
}

// VFWritten returns the VF that the configuration of a plugin names: by its PCI
// address, by its network device, or by its directory below /sys/devices. It is nil
// for a text that names none on this node. Plugins make a path of what they are given,
// so that a path from /sys/bus/pci/devices is as good as an address.
func (s FS) VFWritten(text string) (*Function, error) {
	if strings.Contains(text, "/") {
		text = s.written(text)
	}
	f, err := s.FunctionNamed(text)
	for _, none := range []error{fs.ErrNotExist, fs.ErrInvalid, ErrNotPCI, ErrNotVF} {
		if errors.Is(err, none) {
			return nil, nil
		}
	}
	if err != nil || !f.IsVF() {
		return nil, err
	}
	return f, nil
}

// written returns the address of the PCI function that a path leads to, by whatever
// detours and links: of a directory below /sys/devices, or from /sys/bus/pci/devices.
// Where it leads to none it is its last element.
func (s FS) written(path string) string {
	dir := s.path("bus/pci/devices/" + path)
	if below, ok := strings.CutPrefix(path, "/sys/devices/"); ok {
		dir = s.path("devices/" + below)
	}
	if to, err := filepath.EvalSymlinks(dir); err == nil {
		if addr, err := s.pciAncestor(to); err == nil {
			return addr
		}
	}
	return filepath.Base(filepath.Clean(path))
}

// pciAncestor returns the address of the PCI function that dir, a device directory
// below sys/devices, is or stands on. Only virtio and auxiliary devices are
// climbed: they are the function under another name.
func (s FS) pciAncestor(dir string) (string, error) {
	top := s.path("devices")
	for strings.HasPrefix(dir, top+"/") {
		bus, err := linkBase(filepath.Join(dir, "subsystem"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		switch bus {
		case "pci":
			return ParseAddress(filepath.Base(dir))
		case "virtio", "auxiliary":
			dir = filepath.Dir(dir)
		default:
			return "", ErrNotPCI
		}
	}
	return "", ErrNotPCI
}

// validNetDev reports whether the kernel would accept name for a network device:
// 1 to 15 bytes, not a directory's own name, no slash, colon or white space.
func validNetDev(name string) bool {
	const ifNameSize = 16 // with the terminating NUL
	return name != "" && len(name) < ifNameSize && name != "." && name != ".." &&
		!strings.ContainsAny(name, "/:\x00 \t\n\v\f\r")
}
