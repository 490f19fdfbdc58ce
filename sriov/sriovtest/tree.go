// Package sriovtest builds sysfs trees of PCI functions, laid out as the kernel does,
// for tests and demonstrations without SR-IOV hardware.
//
// A [Tree] is a directory, and anything that reads sysfs below a root directory can be
// pointed at it. It has real directories under sys/devices and the kernel's relative
// links to them under sys/bus and sys/class, so following a link leads to the same
// place as on a machine. The directory is the only state. Adding, binding, moving and
// removing devices change it step by step in the kernel's order, and readers may look
// on meanwhile.
//
//	tree := sriovtest.New(dir)
//	tree.AddPF(sriovtest.PF{Address: "0000:21:00.0", NetDev: "ens1", Driver: "igb", TotalVFs: 7})
//	tree.AddVF(sriovtest.VF{PF: "0000:21:00.0", Index: 0, Address: "0000:21:10.0", Driver: "igbvf"})
//	if err := tree.Err(); err != nil {
//		return err
//	}
//	f, err := tree.FS().Function("0000:21:10.0")
//
// [Tree.AddIGB], [Tree.AddICE], [Tree.AddI40E], [Tree.AddICESwitchdev],
// [Tree.AddSwitchdev], [Tree.AddMLX5Dual], [Tree.AddMLX5InfiniBand] and [Tree.AddBNXT]
// add adapters as their vendors' drivers present them.
//
// [Tree.Host] adds what sysfs does not show: the state that each PF keeps for its VFs,
// the means to set it, drivers that refuse to ([Tree.Refuse]), and the kernel's events.
//
// A plain directory cannot imitate attributes that exist but fail to read (they are
// left out instead), nor writes that have an effect, for which Tree has methods.
package sriovtest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/manifold-cni/manifold/sriov"
)

// Tree is a sysfs tree under construction. It keeps the first failure, whether of the
// file system or because of a description that makes no sense; later method calls do
// nothing. The methods must not be called concurrently, but others may read the tree
// meanwhile.
type Tree struct {
	root    string
	err     error
	ifindex int
	kernel  kernel
}

// New returns an empty tree in root, which must exist. The tree has no PCI device and
// no NUMA node yet, not even a PCI bus.
func New(root string) *Tree {
	t := &Tree{root: root, kernel: kernel{vfs: map[string]*vfState{}, altNames: map[string]string{}, settings: map[string]sriov.Settings{}, listeners: map[chan struct{}]bool{}}}
	t.mkdir("sys/class/net")
	return t
}

// Root returns the directory that contains sys.
func (t *Tree) Root() string { return t.root }

// FS returns the tree for package sriov.
func (t *Tree) FS() sriov.FS { return sriov.FS{Root: t.root} }

// Err returns the first failure of any method so far, or nil.
func (t *Tree) Err() error { return t.err }

func (t *Tree) fail(format string, args ...any) {
	if t.err == nil {
		t.err = fmt.Errorf("sriovtest: "+format, args...)
	}
}

// do runs op unless something failed before, and signals those who wait for changes.
func (t *Tree) do(op func() error) {
	if t.err != nil {
		return
	}
	if err := op(); err != nil {
		t.fail("%w", err)
	}
	t.kernel.tell()
}

func (t *Tree) abs(path string) string { return filepath.Join(t.root, path) }

func (t *Tree) mkdir(path string) {
	t.do(func() error { return os.MkdirAll(t.abs(path), 0o755) })
}

// entry is one file of a directory: an attribute's value or a link's target.
type entry struct{ name, value string }

func attr(name string, value any) entry { return entry{name, fmt.Sprintln(value)} }

// place creates a directory with attributes and with links to paths in the tree. They
// all appear at once, as for a device in sysfs.
func (t *Tree) place(dir string, attrs, links []entry) {
	const staging = ".staging"
	t.mkdir(filepath.Dir(dir))
	t.do(func() error { return os.Mkdir(t.abs(staging), 0o755) })
	for _, a := range attrs {
		t.do(func() error { return os.WriteFile(t.abs(staging+"/"+a.name), []byte(a.value), 0o644) })
	}
	for _, l := range links {
		t.symlink(staging+"/"+l.name, dir, l.value)
	}
	t.do(func() error { return os.Rename(t.abs(staging), t.abs(dir)) })
}

// write replaces an attribute. As in sysfs, a reader sees the old or the new value and
// never an empty file.
func (t *Tree) write(dir string, a entry) {
	const staging = ".attribute"
	t.do(func() error { return os.WriteFile(t.abs(staging), []byte(a.value), 0o644) })
	t.do(func() error { return os.Rename(t.abs(staging), t.abs(dir+"/"+a.name)) })
}

// link creates a relative link, as all links in sysfs are, and the directory for it.
func (t *Tree) link(path, target string) {
	t.mkdir(filepath.Dir(path))
	t.symlink(path, filepath.Dir(path), target)
}

// symlink creates a link at path that leads to target from the directory dir. The
// kernel names the target even in a link to an ancestor: ../../../virtio2, not just
// ../..
func (t *Tree) symlink(path, dir, target string) {
	t.do(func() error {
		up, err := filepath.Rel(dir, filepath.Dir(target))
		if err != nil {
			return err
		}
		return os.Symlink(up+"/"+filepath.Base(target), t.abs(path))
	})
}

// remove deletes a link, an attribute or a whole directory. The path may be absent.
func (t *Tree) remove(path string) {
	t.do(func() error { return os.RemoveAll(t.abs(path)) })
}

// follow returns the target of a link as a path in the tree, or an empty string if the
// link is absent.
func (t *Tree) follow(path string) string {
	if t.err != nil {
		return ""
	}
	target, err := os.Readlink(t.abs(path))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.fail("%w", err)
		return ""
	}
	return filepath.Join(filepath.Dir(path), target)
}

// glob returns the entries that match a pattern, as paths in the tree.
func (t *Tree) glob(dir, pattern string) []string {
	if t.err != nil {
		return nil
	}
	entries, err := os.ReadDir(t.abs(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.fail("%w", err)
	}
	var out []string
	for _, e := range entries {
		if ok, _ := filepath.Match(pattern, e.Name()); ok {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// component checks a name that becomes one component of a path.
func (t *Tree) component(what, name string) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		t.fail("%q cannot be the name of a %s", name, what)
	}
}

// Function describes a PCI function that is neither PF nor VF. Only Address is
// required.
type Function struct {
	Address string
	// Vendor and Device have four hexadecimal digits, Class has six. The default is an
	// Intel 82576 Ethernet controller: 8086, 10c9, 020000.
	Vendor, Device, Class string
	Driver                string // empty for none
	NUMA                  int    // the node; -1 if the platform does not tell
	IOMMUGroup            string // a number; empty without an IOMMU
	// Bridge is the address of the PCI bridge above the function, which is added if it
	// is absent; empty for a function on a root bus.
	Bridge string
	// Virtio is the name (virtio2) of the virtio device between the function and its
	// network devices; empty for a function that is not virtio.
	Virtio string
	// NetDev is the network device on the function; empty for none. [Tree.AddNetDev]
	// adds further ones, and those with port names.
	NetDev string
}

// PF describes a physical function, see [Function] for the common fields.
type PF struct {
	Address               string
	Vendor, Device, Class string
	Driver                string
	NUMA                  int
	IOMMUGroup            string
	Bridge                string
	NetDev                string
	TotalVFs              int // the value of sriov_totalvfs
}

// VF describes a virtual function. It has its PF's values for everything that has no
// field here. Device is 10ca by default, the VF of an 82576.
type VF struct {
	PF         string // address of a PF that is in the tree
	Index      int
	Address    string
	Device     string
	Driver     string // empty for none
	IOMMUGroup string
	NetDev     string
}

// AddFunction adds a function that is neither PF nor VF.
func (t *Tree) AddFunction(f Function) { t.addFunction(f) }

func (t *Tree) addFunction(f Function, attrs ...entry) {
	f.Address = t.address(f.Address)
	bus := "sys/devices/pci" + busOf(f.Address)
	if f.Bridge != "" {
		bridge := t.address(f.Bridge)
		if t.dir(bridge) == "" {
			t.AddFunction(Function{Address: bridge, Device: "1905", Class: "060400", Driver: "pcieport", NUMA: f.NUMA})
		}
		bus = t.dir(bridge)
	}
	t.add(bus, f, attrs)
	t.attach(f)
}

// AddPF adds a physical function without VFs.
func (t *Tree) AddPF(p PF) {
	if p.TotalVFs < 1 {
		t.fail("PF %s has no VFs to offer", p.Address)
	}
	t.addFunction(Function{
		Address: p.Address, Vendor: p.Vendor, Device: p.Device, Class: p.Class, Driver: p.Driver,
		NUMA: p.NUMA, IOMMUGroup: p.IOMMUGroup, Bridge: p.Bridge, NetDev: p.NetDev,
	}, attr("sriov_totalvfs", p.TotalVFs), attr("sriov_numvfs", 0))
}

// AddVF adds a virtual function to a PF in the tree, and counts it in sriov_numvfs. As
// in the kernel, the function appears first, then the links between it and the PF, then
// its driver and network device.
func (t *Tree) AddVF(v VF) {
	pf := t.mustDir(t.address(v.PF))
	v.Address = t.address(v.Address)
	f := Function{
		Address: v.Address, Vendor: t.hex(pf, "vendor"), Device: cmp.Or(v.Device, "10ca"), Class: t.hex(pf, "class"),
		NUMA: t.number(pf, "numa_node"), IOMMUGroup: v.IOMMUGroup, Driver: v.Driver, NetDev: v.NetDev,
	}
	if v.Index < 0 || v.Index >= t.number(pf, "sriov_totalvfs") {
		t.fail("PF %s has no VF %d", v.PF, v.Index)
	}
	t.add(filepath.Dir(pf), f, nil)
	dir := t.dir(f.Address)
	t.link(fmt.Sprintf("%s/virtfn%d", pf, v.Index), dir)
	t.link(dir+"/physfn", pf)
	if f.Class == infinibandClass {
		t.kernel.addInfiniBand(f.Address)
	}
	t.attach(f)
	t.countVFs(pf)
}

// Remove removes a PCI function as if it were unplugged, and with a PF its VFs.
// Removing a VF is what writing sriov_numvfs does to each VF.
func (t *Tree) Remove(addr string) {
	addr = t.address(addr)
	dir := t.mustDir(addr)
	if t.err != nil {
		return
	}
	t.RemoveVFs(addr)
	pf := t.follow(dir + "/physfn")
	if pf != "" {
		for _, virtfn := range t.glob(pf, "virtfn*") {
			if t.follow(virtfn) == dir {
				t.remove(virtfn)
			}
		}
		t.remove(dir + "/physfn")
	}
	t.detach(dir)
	t.remove("sys/bus/pci/devices/" + addr)
	t.bury(dir)
	t.kernel.forget(addr)
	if pf != "" {
		t.countVFs(pf)
	}
}

// bury moves a function's directory out of the tree, empties it and keeps it, so that
// no other function ever gets its inode, see [sriov.Function].
func (t *Tree) bury(dir string) {
	const graves = ".gone"
	t.mkdir(graves)
	var grave string
	t.do(func() (err error) {
		grave, err = os.MkdirTemp(t.abs(graves), "")
		if err == nil {
			err = os.Rename(t.abs(dir), grave+"/function")
		}
		return err
	})
	for _, entry := range t.glob(graves+"/"+filepath.Base(grave)+"/function", "*") {
		t.remove(entry)
	}
}

// RemoveVFs removes all VFs of a PF, as writing 0 to sriov_numvfs does.
func (t *Tree) RemoveVFs(pf string) {
	for _, virtfn := range t.glob(t.mustDir(t.address(pf)), "virtfn*") {
		if vf := t.follow(virtfn); vf != "" {
			t.Remove(filepath.Base(vf))
		}
	}
}

// Bind binds a function to another driver, or to none if driver is empty. The old
// driver's network devices disappear; [Tree.AddNetDev] adds those of the new driver.
func (t *Tree) Bind(addr, driver string) {
	dir := t.mustDir(t.address(addr))
	if t.err != nil {
		return
	}
	t.removeNetDevs(dir)
	t.unbind(dir)
	t.bind(dir, driver)
}

// address normalizes an address that the tree's user gave.
func (t *Tree) address(s string) string {
	addr, err := sriov.ParseAddress(s)
	if err != nil {
		t.fail("%w", err)
	}
	return addr
}

// busOf returns the dddd:bb part of an address.
func busOf(addr string) string { return addr[:max(0, len(addr)-len(":dd.f"))] }

// dir returns the directory of a function in the tree, or an empty string if it is
// absent.
func (t *Tree) dir(addr string) string { return t.follow("sys/bus/pci/devices/" + addr) }

func (t *Tree) mustDir(addr string) string {
	dir := t.dir(addr)
	if dir == "" {
		t.fail("no PCI function %s: %w", addr, fs.ErrNotExist)
	}
	return dir
}

// add creates the function's directory and its entry on the bus.
func (t *Tree) add(parent string, f Function, attrs []entry) {
	dir := parent + "/" + f.Address
	if t.dir(f.Address) != "" {
		t.fail("PCI function %s: %w", f.Address, fs.ErrExist)
	}
	links := []entry{{"subsystem", "sys/bus/pci"}}
	if f.IOMMUGroup != "" {
		t.component("IOMMU group", f.IOMMUGroup)
		group := "sys/kernel/iommu_groups/" + f.IOMMUGroup
		t.link(group+"/devices/"+f.Address, dir)
		links = append(links, entry{"iommu_group", group})
	}
	t.place(dir, append(attrs, t.attributes(f)...), links)
	t.link("sys/bus/pci/devices/"+f.Address, dir)
}

// attributes returns the attributes that every PCI function has.
func (t *Tree) attributes(f Function) []entry {
	vendor, device, class := cmp.Or(f.Vendor, "8086"), cmp.Or(f.Device, "10c9"), cmp.Or(f.Class, "020000")
	if !isID(vendor, 4) || !isID(device, 4) || !isID(class, 6) {
		t.fail("PCI function %s: bad vendor %q, device %q or class %q", f.Address, vendor, device, class)
		return nil
	}
	up := strings.ToUpper
	modalias := fmt.Sprintf("pci:v0000%sd0000%ssv0000%ssd00000000bc%ssc%si%s",
		up(vendor), up(device), up(vendor), up(class[:2]), up(class[2:4]), up(class[4:]))
	return []entry{
		attr("vendor", "0x"+vendor), attr("device", "0x"+device), attr("class", "0x"+class),
		attr("subsystem_vendor", "0x"+vendor), attr("subsystem_device", "0x0000"),
		attr("revision", "0x01"), attr("numa_node", f.NUMA), attr("modalias", modalias),
		attr("uevent", fmt.Sprintf("PCI_CLASS=%s\nPCI_ID=%s:%s\nPCI_SUBSYS_ID=%s:0000\nPCI_SLOT_NAME=%s\nMODALIAS=%s",
			up(strings.TrimLeft(class, "0")), up(vendor), up(device), up(vendor), f.Address, modalias)),
	}
}

// isID reports whether s has n hexadecimal digits in lower case.
func isID(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// attach does what a driver does to a function when it binds.
func (t *Tree) attach(f Function) {
	dir := t.dir(f.Address)
	t.bind(dir, f.Driver)
	if f.Virtio != "" {
		t.component("virtio device", f.Virtio)
		t.link(dir+"/"+f.Virtio+"/subsystem", "sys/bus/virtio")
		t.link("sys/bus/virtio/devices/"+f.Virtio, dir+"/"+f.Virtio)
	}
	if f.NetDev != "" {
		t.AddNetDev(f.Address, NetDev{Name: f.NetDev})
	}
}

func (t *Tree) bind(dir, driver string) {
	if driver == "" {
		return
	}
	t.component("driver", driver)
	t.link("sys/bus/pci/drivers/"+driver+"/"+filepath.Base(dir), dir)
	t.link(dir+"/driver", "sys/bus/pci/drivers/"+driver)
	if node, class := t.vfioNode(dir); node != "" {
		t.mkdir(filepath.Dir(node))
		t.do(func() error { return os.Symlink(vfioDevice, t.abs(node)) })
		t.place(class, []entry{attr("dev", vfioNumber)}, nil)
	}
}

// The stand-in for every VFIO device node, because creating a device node needs
// privilege: a character device that every machine has.
const vfioDevice, vfioNumber = "/dev/null", "1:3"

// vfioNode returns the device node of a function that is bound to VFIO and has an IOMMU
// group, and the group's directory in sysfs. For other functions it returns empty
// strings. A group has one function here.
func (t *Tree) vfioNode(dir string) (node, class string) {
	group, driver := t.follow(dir+"/iommu_group"), t.follow(dir+"/driver")
	if group == "" || !(sriov.Function{Driver: filepath.Base(driver)}).VFIO() {
		return "", ""
	}
	return "dev/vfio/" + filepath.Base(group), "sys/class/vfio/" + filepath.Base(group)
}

func (t *Tree) unbind(dir string) {
	if node, class := t.vfioNode(dir); node != "" {
		t.remove(node)
		t.remove(class)
	}
	if driver := t.follow(dir + "/driver"); driver != "" {
		t.remove(dir + "/driver")
		t.remove(driver + "/" + filepath.Base(dir))
	}
}

// detach removes everything that leads to a function from elsewhere, except for the bus
// entry.
func (t *Tree) detach(dir string) {
	t.removeNetDevs(dir)
	for _, aux := range t.glob("sys/bus/auxiliary/devices", "*") {
		if strings.HasPrefix(t.follow(aux), dir+"/") {
			t.remove(aux)
		}
	}
	for _, virtio := range t.glob(dir, "virtio*") {
		t.remove("sys/bus/virtio/devices/" + filepath.Base(virtio))
	}
	t.unbind(dir)
	if group := t.follow(dir + "/iommu_group"); group != "" {
		t.remove(group + "/devices/" + filepath.Base(dir))
	}
}

func (t *Tree) countVFs(pf string) {
	t.write(pf, attr("sriov_numvfs", len(t.glob(pf, "virtfn*"))))
}

// hex reads an attribute of a function, without 0x.
func (t *Tree) hex(dir, name string) string { return strings.TrimPrefix(t.read(dir, name), "0x") }

// number reads a decimal attribute, or 0 if it is absent.
func (t *Tree) number(dir, name string) int {
	var n int
	if v := t.read(dir, name); v != "" {
		t.do(func() error { _, err := fmt.Sscan(v, &n); return err })
	}
	return n
}

func (t *Tree) read(dir, name string) string {
	var data []byte
	t.do(func() (err error) {
		data, err = os.ReadFile(t.abs(dir + "/" + name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return strings.TrimSpace(string(data))
}
