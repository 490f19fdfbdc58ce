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

// ErrNotPCI is wrapped by the errors of methods that look for the PCI function of
// something that has none, such as a bridge, a veth or a USB adapter.
var ErrNotPCI = errors.New("has no PCI function")

// netDevs returns the network devices of the function listed in n: those in its net
// directory, and those of a virtio device, which the kernel places as a separate device
// between the PCI function and the network device.
func (s FS) netDevs(n *node) []string {
	names := n.children("net")
	for _, name := range n.names {
		if !strings.HasPrefix(name, "virtio") {
			continue
		}
		// Only a virtio network device has a net directory, and only while the
		// namespace holds the network device.
		children, err := list(filepath.Join(n.dir, name, "net"))
		if err == nil {
			names = append(names, children...)
		}
	}
	slices.SortFunc(names, CompareIDs)
	return names
}

// PFNetDev returns the name of the network device through which the VF at vfAddr is
// configured, which is its PF's uplink as found by [FS.Uplink], and the VF's index on
// that PF.
//
// The error wraps [ErrAddress] if vfAddr is malformed and [ErrNotVF] if it is another
// PCI function. It satisfies errors.Is(err, [io/fs.ErrNotExist]) if the VF does not
// exist, or if the PF has no network device in this namespace, for example because the
// PF itself is bound to a userspace driver.
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

// parent returns the PF of the function at addr, and the function's index on that PF.
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

// Uplink returns the network device of the PF at pf that represents its physical port.
// VFs are configured through this device.
//
// Usually the PF has only one network device. In switchdev mode it also has the
// representors of VFs and subfunctions, which phys_port_name tells apart:
//
//   - p0, or p0s1 for a split port, is an uplink;
//   - a device without a port name is the uplink of a driver that names no ports;
//   - pf0vf3, c1pf0sf88, p0pf0vf3 and the like are representors, and never chosen;
//   - any other name, such as the bare VF number that older kernels gave to
//     representors, is chosen only if there is nothing better.
//
// Among several equally good devices (two ports on one function, as on ConnectX-3),
// Uplink chooses the lowest dev_port, then the lowest dev_id. If that does not decide
// either, Uplink refuses to guess. If there is no candidate, the error satisfies
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

// Kinds of port, from the best candidate for an uplink to the worst.
const (
	portPhysical = iota
	portUnnamed
	portOther
	portRepresentor
)

// port is a network device as a candidate for its function's uplink.
type port struct {
	name           string
	kind           int
	devPort, devID int
}

func (p port) compare(q port) int {
	return cmp.Or(cmp.Compare(p.kind, q.kind), cmp.Compare(p.devPort, q.devPort), cmp.Compare(p.devID, q.devID))
}

// readPort reads what tells ports apart. A device that disappears meanwhile is an
// error: its unreadable attributes would look like absent ones, and a representor would
// pass for an uplink.
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
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EOPNOTSUPP): // the latter two if the driver names no ports
		p.kind = portKind(name)
	default:
		p.kind = portOther
	}
	_, err = os.Stat(dir)
	return p, err
}

// portKind classifies a phys_port_name. The grammar is devlink's: p0 and p0s1 are
// physical ports; pf0, pf0vf3 and pf0sf88, each with an optional controller c1 in
// front, are the host side of PCI ports. BlueField calls its host PF pf0hpf, and sfc
// puts the physical port in front, p0pf0vf3.
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

// cutPart removes prefix and the decimal number that follows from the front of s.
func cutPart(s, prefix string) (rest string, ok bool) {
	s, ok = strings.CutPrefix(s, prefix)
	if !ok || s == "" || !isDigit(s[0]) {
		return "", false
	}
	return strings.TrimLeft(s, "0123456789"), true
}

// OfNetDev returns the address of the PCI function below the named network device,
// which may sit on a virtio or auxiliary device in between (the network device of a
// subfunction belongs to its PF).
//
// The error wraps [ErrNotPCI] for a device without a PCI function: a virtual device,
// but also a USB adapter, although its host controller is a PCI function. It satisfies
// errors.Is(err, [io/fs.ErrNotExist]) if the network namespace has no such device, and
// [io/fs.ErrInvalid] if name cannot be the name of a network device.
func (s FS) OfNetDev(name string) (string, error) {
	if !validNetDev(name) {
		return "", fmt.Errorf("sriov: %s is not a network device name: %w", quote(name), fs.ErrInvalid)
	}
	class := s.path("class/net")
	target, err := os.Readlink(filepath.Join(class, name))
	if err != nil {
		return "", fmt.Errorf("sriov: network device %s: %w", name, err)
	}
	// The link points to DEVICE/net/NAME.
	dir := filepath.Dir(filepath.Dir(filepath.Join(class, target)))
	addr, err := s.pciAncestor(dir)
	if err != nil {
		return "", fmt.Errorf("sriov: network device %s: %w", name, err)
	}
	return addr, nil
}

// OfParent translates the parent of a network device, as the kernel names it
// (IFLA_PARENT_DEV_NAME), to the address of the PCI function. For a virtio device,
// which the kernel places in between, it returns the function below. Any other name is
// returned unchanged.
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
		return name // a device on another bus
	}
	return addr
}

// VFOfNetDev returns the VF whose network device has this name.
//
// The error wraps [ErrNotVF] if the network device belongs to another PCI function, or
// to a part of one, such as a subfunction. Any other error is that of [FS.OfNetDev]. A
// network device in another network namespace is not found, and another device may have
// its name meanwhile.
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
// address or, as some plugins name VFs, by its network device. The error is that of
// [FS.Function] for an address, else that of [FS.VFOfNetDev].
func (s FS) FunctionNamed(id string) (*Function, error) {
	if !IsAddress(id) {
		return s.VFOfNetDev(id)
	}
	return s.Function(id)
}

// VFWritten returns the VF that a plugin's configuration names: by PCI address, by
// network device, or by its directory below /sys/devices. It returns nil for a text
// that names no VF on this node. Plugins build a path from such a text, so a path
// relative to /sys/bus/pci/devices is as good as an address.
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

// written returns the address of the PCI function that a path leads to through any
// links and "..": an absolute path below /sys/devices, or a path relative to
// /sys/bus/pci/devices. If the path leads to no function, written returns its last
// element.
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

// pciAncestor returns the address of the PCI function that is dir or an ancestor of
// dir, a device directory below sys/devices. It climbs only over virtio and auxiliary
// devices, which are the function under another name.
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

// validNetDev reports whether the kernel would accept name for a network device: 1 to
// 15 bytes, neither "." nor "..", and without slash, colon and white space.
func validNetDev(name string) bool {
	const ifNameSize = 16 // with the terminating NUL
	return name != "" && len(name) < ifNameSize && name != "." && name != ".." &&
		!strings.ContainsAny(name, "/:\x00 \t\n\v\f\r")
}
