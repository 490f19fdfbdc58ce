// Package verify compares an interface, by netlink, with what the plan wants and what
// the delegate's result claims.
//
// It works in steps that can be used separately. [Capture] runs before the delegate and
// records the device on the host: its netdevs and the PF's view of a VF. [Look] runs
// after the delegate and gathers the facts: the interface inside the sandbox, what is
// left on the host, the PF's view. [Compare] is pure: it names what was compared and
// what differs. [Sandbox.Carrier] runs once all attachments of a sandbox are made,
// since a link takes time to come up.
//
// The kernel's own word proves that an interface stands on a device: its parent device
// (IFLA_PARENT_DEV_NAME, else the driver's bus-info). Where the kernel gives no parent,
// as for software devices that a device plugin advertises, the hardware address that
// the device had on the host decides.
package verify

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// Interface is an interface inside the sandbox. When there is none of that name, Exists
// is false and the rest is empty.
type Interface struct {
	Exists    bool
	Name      string
	MAC       string
	MTU       int
	Up        bool   // administratively up, with or without a carrier
	Parent    string // parent device or bus-info; empty when the kernel names none
	Lower     int    // index of the host's link that it is stacked on or paired with; 0 for none
	Addresses []string
}

// Facts are what [Look] finds.
type Facts struct {
	Interface Interface
	// Missing are the interfaces that the result claims in the sandbox and that do not
	// exist.
	Missing []string
	// LeftOnHost are the netdevs of the allocated device that are still on the host.
	LeftOnHost []sriov.NetDev
	Device     *sriov.Snapshot // present state; nil without a device
	// Node is the device node of a device that is bound to VFIO, and NodeProblem what
	// is wrong with it. Both are empty for other devices.
	Node        string
	NodeProblem *sriov.NodeError
	// NoNetDev reports that a VF that is useful only through a netdev has none: none
	// was on the host before, and no interface is in the sandbox.
	NoNetDev bool
}

// StandsOn fills in a device from the PCI function f that it is.
func StandsOn(d *plan.Device, f *sriov.Function) {
	d.PCIAddress, d.PF, d.VFIndex, d.Driver, d.Userspace, d.IOMMUGroup = f.Address, f.PF, f.VFIndex, f.Driver, f.Userspace(), f.IOMMUGroup
}

// Capture records the device of an attachment before its delegate runs. It returns nil
// when the attachment has none. A device that is not on this node is
// [cnierr.DeviceVanished]. A VF that its PF omits from its answer is [cnierr.TryAgain]:
// nobody would know what its DEL has to restore.
func Capture(host sriov.Host, d *plan.Device) (*sriov.Snapshot, error) {
	if d == nil {
		return nil, nil
	}
	out, err := snapshot(host, d)
	if errors.Is(err, os.ErrNotExist) {
		return nil, vanished(d, "look up device", "the kubelet allocated it, but this node has no such device: %w", err)
	}
	if err != nil {
		kind := cnierr.IO
		if errors.Is(err, sriov.ErrOmitted) {
			kind = cnierr.TryAgain
		}
		return nil, cnierr.New("look up device", kind, "%w", err).
			About(cnierr.Subject{Resource: d.Resource, Device: d.Name()})
	}
	return out, nil
}

// Vanished wraps the error of an operation on a device. When the PCI function of before
// has left the node, that explains any failure, and the error becomes
// [cnierr.DeviceVanished]. Without an error it returns nil.
func Vanished(host sriov.Host, d *plan.Device, before *sriov.Snapshot, cause error) error {
	if cause == nil || before == nil || d == nil || d.PCIAddress == "" {
		return cause
	}
	text := "this node has no such device any more"
	switch now, err := host.Snapshot(d.PCIAddress); {
	case errors.Is(err, os.ErrNotExist):
	case err == nil && !before.SameFunction(now):
		text = "another function has taken its address"
	default:
		return cause
	}
	if e, ok := cause.(*cnierr.Error); ok { //nolint:errorlint // the outermost itself is meant
		moot := *e
		moot.Fix = "" // the fix no longer applies
		cause = &moot
	}
	return vanished(d, "use device", "it left the node meanwhile, "+text+": %w", cause)
}

// vanished is the error of a device that is not on the node.
func vanished(d *plan.Device, op, format string, err error) error {
	return cnierr.New(op, cnierr.DeviceVanished, format, err).
		About(cnierr.Subject{Resource: d.Resource, Device: d.Name()}).WithFix(vanishedFix)
}

// Recorded decodes a device from the journal, as [Capture] returned it. A nil record is
// an error: it was lost.
func Recorded(raw json.RawMessage) (*sriov.Snapshot, error) {
	if raw == nil {
		return nil, cnierr.New("read recorded device", cnierr.JournalCorrupt, "its state before its last use is not known")
	}
	out := &sriov.Snapshot{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, cnierr.New("read recorded device", cnierr.JournalCorrupt, "%w", err)
	}
	return out, nil
}

// snapshot returns the present state of a device. Only a PCI function can be known to
// be gone. Any other ID is a device plugin's own, and the node may never have known it.
func snapshot(host sriov.Host, d *plan.Device) (*sriov.Snapshot, error) {
	if d.PCIAddress != "" {
		return host.Snapshot(d.PCIAddress)
	}
	s, err := host.Snapshot(d.ID)
	if errors.Is(err, os.ErrNotExist) {
		return &sriov.Snapshot{VFIndex: -1}, nil
	}
	return s, err
}

// Look gathers the facts after a delegate ran. claimed are the interfaces that the
// delegate's result places in the sandbox.
func Look(host sriov.Host, sandbox *Sandbox, a *plan.Attachment, claimed []string, before *sriov.Snapshot) (*Facts, error) {
	f := &Facts{}
	var err error
	if f.Interface, err = sandbox.look(a.IfName, a.Device != nil); err != nil {
		return nil, sandboxError(err)
	}
	f.Interface.Parent = host.OfParent(f.Interface.Parent)
	for _, name := range claimed {
		there := f.Interface.Exists
		if name != a.IfName {
			link, err := sandbox.named(name)
			if err != nil {
				return nil, sandboxError(err)
			}
			there = link != nil
		}
		if !there {
			f.Missing = append(f.Missing, name)
		}
	}
	if before == nil {
		return f, nil
	}
	if err = f.lookOnHost(host, before); err == nil {
		err = f.lookAtDevice(host, a.Device, before)
	}
	if err != nil {
		return nil, cnierr.New("inspect device", cnierr.IO, "%w", err)
	}
	return f, nil
}

// lookOnHost finds the netdevs of before that are still on the host.
func (f *Facts) lookOnHost(host sriov.Host, before *sriov.Snapshot) error {
	var links sriov.Links = sriov.Kernel{}
	if host.Links != nil {
		links = host.Links
	}
	for _, d := range before.NetDevs {
		link, err := links.Link(d.Name)
		if errors.Is(err, sriov.ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		if link.Index == d.Index {
			f.LeftOnHost = append(f.LeftOnHost, d)
		}
	}
	return nil
}

// lookAtDevice gathers the state of the device itself, if it is still there.
func (f *Facts) lookAtDevice(host sriov.Host, d *plan.Device, before *sriov.Snapshot) (err error) {
	f.Device, err = snapshot(host, d)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil || d.PCIAddress == "":
		return err
	case d.Userspace:
		return f.lookAtNode(host, d.PCIAddress)
	case d.PF != "" && len(before.NetDevs) == 0 && !f.Interface.Exists:
		return f.lookForNetDev(host, d.PCIAddress)
	}
	return nil
}

// lookAtNode checks the device node of a function that may be bound to VFIO.
func (f *Facts) lookAtNode(host sriov.Host, address string) error {
	fn, err := host.Function(address)
	if errors.Is(err, os.ErrNotExist) || err == nil && !fn.VFIO() {
		return nil // gone or on another driver: Compare reports both
	}
	if err != nil {
		return err
	}
	f.Node, err = host.VFIONode(*fn)
	if errors.As(err, &f.NodeProblem) {
		return nil
	}
	return err
}

// lookForNetDev finds out whether a VF without a netdev should have one.
func (f *Facts) lookForNetDev(host sriov.Host, address string) (err error) {
	f.NoNetDev, err = host.NeedsNetDev(address)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone: Compare reports it
	}
	return err
}

// Returned reports whether the netdevs that a device had before are on the host again.
// A device that left the node has none to return, nor has a device that is on another
// driver: [Restore] tells what becomes of that one.
func Returned(host sriov.Host, d *plan.Device, before *sriov.Snapshot) (bool, error) {
	if before == nil {
		return true, nil
	}
	now, err := snapshot(host, d)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, cnierr.New("inspect device", cnierr.IO, "%w", err)
	}
	if d.PCIAddress != "" { // [Restore] sees to its name
		return len(now.NetDevs) >= len(before.NetDevs) || now.Driver != before.Driver, nil
	}
	for _, was := range before.NetDevs {
		if !slices.ContainsFunc(now.NetDevs, func(n sriov.NetDev) bool { return n.Name == was.Name }) {
			return false, nil
		}
	}
	return true, nil
}

// Claim is what a delegate's result says about the attachment's own interface.
type Claim struct {
	Interface bool // the result names the interface in the sandbox
	MAC       string
	MTU       int
	Addresses []string // CIDR
}

// Report is the outcome of a comparison.
type Report struct {
	Checked  []string           // fields that were compared and found equal
	Findings []sriov.Difference // fields that differ
	Warnings []sriov.Difference // fields that differ and are to be reported only
}

// Fix says what to do about the findings.
func (r Report) Fix() string {
	for _, d := range r.Findings {
		if fix := cmp.Or(fixes[d.Field], fixes[Class(d)]); fix != "" {
			return fix
		}
	}
	if !slices.ContainsFunc(r.Findings, func(d sriov.Difference) bool { return d.Field != carrierField }) {
		return "check the link of the device's port, or set carrier to warn to attach pods without a carrier"
	}
	return "see the delegate's log: it did not do what it was asked to do or what it claims"
}

// vanishedFix says what to do about a device that left the node.
const vanishedFix = "delete the pod, and see who removed the device or created it again, and why the device plugin still advertises it"

// hostFix says what to do about a device that somebody changed on the host.
const hostFix = "find out who bound the device to another driver or changed its device node while the pod started, and delete the pod if it stays that way"

// Classes of differences that no delegate causes.
const (
	classDevice   = "allocated device" // whether it is on the node
	classFunction = "PCI function"
	classDriver   = "driver"
	classGroup    = "IOMMU group"
	classNode     = "device node"
)

// fieldNetDev is the field for whether the allocated device had a netdev to begin with.
const fieldNetDev = "network device of the allocated device"

// netDevFix says what to do about a VF without a netdev.
const netDevFix = "find out which network namespace has the VF's network device, or why its driver creates none; for a userspace program, bind the VF to vfio-pci before it is allocated"

var fixes = map[string]string{
	fieldNetDev: netDevFix, classDevice: vanishedFix, classFunction: vanishedFix, classDriver: hostFix, classGroup: hostFix, classNode: hostFix,
}

// Class returns a difference's field without the names in it. There are few classes, so
// they can be counted in metrics.
func Class(d sriov.Difference) string {
	for _, class := range []string{"interface", "network device", classDevice} {
		if strings.HasPrefix(d.Field, class+" ") {
			return class
		}
	}
	return d.Field
}

// expect records field as checked when want equals found, and as a finding otherwise.
func (r *Report) expect(field, want, found string) {
	if want == found {
		r.Checked = append(r.Checked, field)
		return
	}
	if found == "" {
		found = "none"
	}
	r.Findings = append(r.Findings, sriov.Difference{Field: field, Want: want, Found: found})
}

// expectMAC compares hardware addresses or GUIDs, whatever their spelling. Of
// InfiniBand addresses it compares only the part that belongs to the function.
func (r *Report) expectMAC(field, want, found string) {
	if hw, err := net.ParseMAC(want); err == nil {
		want = hw.String()
	}
	if sriov.SameMAC(want, found) {
		want = found
	}
	r.expect(field, want, found)
}

// Compare reports what about the attachment is as planned, claimed and requested, and
// what is not. before is what [Capture] returned.
func Compare(a *plan.Attachment, c Claim, before *sriov.Snapshot, f *Facts) Report {
	var r Report
	i := f.Interface
	// A userspace device has no interface, whatever its delegate's result claims:
	// host-device for one names an interface for every device.
	userspace := a.Device != nil && a.Device.Userspace
	written := a.Device != nil && a.Device.Written
	needed := !userspace && (c.Interface || before != nil && len(before.NetDevs) > 0 && !written)
	if needed || i.Exists {
		r.expect("interface "+a.IfName, "present", presence(i.Exists))
	}
	for _, name := range f.Missing {
		if name != a.IfName {
			r.expect("interface "+name, "present", "absent")
		}
	}
	if i.Exists {
		compareInterface(&r, a, c, i)
	}
	if a.Device != nil {
		compareDevice(&r, a.Device, before, f)
	}
	if a.Want.VF != nil {
		compareVF(&r, a.Want.VF, f.Device)
	}
	return r
}

func presence(b bool) string {
	if b {
		return "present"
	}
	return "absent"
}

func upDown(b bool) string {
	if b {
		return "up"
	}
	return "down"
}

// compareInterface compares MAC, MTU, state and addresses with the claim and the
// request.
func compareInterface(r *Report, a *plan.Attachment, c Claim, i Interface) {
	if c.MAC != "" {
		r.expectMAC("MAC (result)", c.MAC, i.MAC)
	}
	if a.Want.MAC != "" {
		r.expectMAC("MAC (requested)", a.Want.MAC, i.MAC)
	}
	if c.MTU > 0 {
		r.expect("MTU (result)", fmt.Sprint(c.MTU), fmt.Sprint(i.MTU))
	}
	if a.Want.MTU > 0 {
		r.expect("MTU (configuration)", fmt.Sprint(a.Want.MTU), fmt.Sprint(i.MTU))
	}
	// A VF whose link is forced up is no use to a pod whose own end was left down. This
	// needs no carrier and no policy about one.
	if a.Want.VF != nil && strings.EqualFold(a.Want.VF.LinkState, "enable") {
		r.expect("administrative state", upDown(true), upDown(i.Up))
	}
	for _, addr := range c.Addresses {
		r.expect("address (result)", addr, pick(i.Addresses, addr))
	}
	for _, addr := range a.Want.IPs {
		r.expect("address (requested)", addr, pick(i.Addresses, addr))
	}
}

// pick returns want when it is among addrs, else all of addrs. Without a prefix length,
// want is compared by address alone.
func pick(addrs []string, want string) string {
	wantIP, wantNet := parseAddr(want)
	for _, a := range addrs {
		ip, prefix := parseAddr(a)
		if ip != nil && ip.Equal(wantIP) && (wantNet == "" || wantNet == prefix) {
			return want
		}
	}
	return strings.Join(addrs, " ")
}

// parseAddr returns the address in s and its network, which is empty for a bare
// address.
func parseAddr(s string) (net.IP, string) {
	ip, prefix, err := net.ParseCIDR(s)
	if err != nil {
		return net.ParseIP(s), ""
	}
	return ip, prefix.String()
}

// ParentDevice is the field that tells that the interface is the allocated device
// itself, moved into the sandbox.
const ParentDevice = "parent device"

// stacked begins the field of an interface that stands on a netdev which stays on the
// host.
const stacked = "stacked on network device "

// compareFunction checks that a PCI function is still the one of before.
func compareFunction(r *Report, before, now *sriov.Snapshot) {
	if before.Instance == 0 || now.Instance == 0 {
		return
	}
	want := "the one that was handed over"
	found := want
	if !before.SameFunction(now) {
		found = "another one, which appeared later at its address"
	}
	r.expect(classFunction, want, found)
}

// Lost returns the differences that show that a living sandbox no longer has its
// device: the device came back as another function, has another driver, or its netdev
// is on the host. before is what [Capture] returned and now the present state. checked
// are the fields compared when the device was attached, nil when there was no
// comparison: then a netdev may be on the host because the interface is stacked on it,
// and only a netdev that came later counts.
func Lost(before, now *sriov.Snapshot, checked []string) []sriov.Difference {
	var r Report
	compareFunction(&r, before, now)
	r.expect(classDriver, before.Driver, now.Driver)
	if before.IOMMUGroup != "" {
		r.expect(classGroup, before.IOMMUGroup, now.IOMMUGroup)
	}
	stays := checked == nil || slices.ContainsFunc(checked, func(s string) bool { return strings.HasPrefix(s, stacked) })
	for _, d := range now.NetDevs {
		was := slices.ContainsFunc(before.NetDevs, func(b sriov.NetDev) bool { return b.Index == d.Index })
		if !stays || !was {
			r.expect("network device "+d.Name, "in the sandbox", "on the host")
		}
	}
	return r.Findings
}

// compareDevice checks that the allocated device is still there, and what stands on it.
func compareDevice(r *Report, d *plan.Device, before *sriov.Snapshot, f *Facts) {
	if before != nil && f.Device == nil {
		r.expect(classDevice+" "+d.Name(), "on the node", "gone")
		return
	}
	if before != nil {
		compareFunction(r, before, f.Device)
	}
	if d.Written { // its purpose is not known
		return
	}
	if !d.Userspace {
		compareNetDev(r, d, before, f)
	} else if f.Device != nil {
		compareUserspace(r, d, before, f)
	}
}

// compareUserspace compares a device that is driven by programs: its driver, and with
// VFIO its device node and its IOMMU group, through which the container was given the
// device.
func compareUserspace(r *Report, d *plan.Device, before *sriov.Snapshot, f *Facts) {
	r.expect(classDriver, d.Driver, f.Device.Driver)
	if f.Interface.Parent != "" { // a software interface may serve it, another device's may not
		r.expect(ParentDevice, d.PCIAddress, f.Interface.Parent)
	}
	if !(sriov.Function{Driver: d.Driver}).VFIO() {
		return
	}
	group := d.IOMMUGroup
	if group == "" && before != nil { // the plan of an older agent
		group = before.IOMMUGroup
	}
	r.expect(classGroup, group, f.Device.IOMMUGroup)
	switch {
	case f.NodeProblem != nil:
		r.expect(classNode, f.NodeProblem.Path, f.NodeProblem.Found)
	case f.Node != "":
		r.expect(classNode, f.Node, f.Node)
	}
}

// compareNetDev checks that the interface is the allocated device, on the driver with
// which it was planned, or is stacked on it as a macvlan is.
func compareNetDev(r *Report, d *plan.Device, before *sriov.Snapshot, f *Facts) {
	if d.PCIAddress != "" && d.Driver != "" && f.Device != nil {
		r.expect(classDriver, d.Driver, f.Device.Driver)
	}
	if f.NoNetDev {
		r.expect(fieldNetDev, "one", "")
	}
	for _, left := range f.LeftOnHost {
		if f.Interface.Exists && f.Interface.Lower == left.Index {
			r.Checked = append(r.Checked, stacked+left.Name+" of the allocated device")
			return
		}
		r.expect("network device "+left.Name+" of the allocated device", "in the sandbox", "on the host")
	}
	switch {
	case len(f.LeftOnHost) > 0 || !f.Interface.Exists:
	case d.PCIAddress != "":
		r.expect(ParentDevice, d.PCIAddress, f.Interface.Parent)
	case f.Interface.Parent != "" && strings.Contains(d.ID, "."):
		r.expect(ParentDevice, d.ID, f.Interface.Parent)
	case before != nil && len(before.NetDevs) > 0:
		sameAsBefore(r, before, f.Interface)
	}
}

// sameAsBefore checks identity by hardware address, for devices whose parent the kernel
// does not name. A newly requested address proves nothing and is compared elsewhere.
func sameAsBefore(r *Report, before *sriov.Snapshot, i Interface) {
	var macs []string
	for _, d := range before.NetDevs {
		macs = append(macs, d.MAC)
	}
	if slices.ContainsFunc(macs, func(mac string) bool { return sriov.SameMAC(mac, i.MAC) }) {
		r.Checked = append(r.Checked, "identity by hardware address")
		return
	}
	if slices.ContainsFunc(r.Checked, func(s string) bool { return s == "MAC (requested)" }) {
		return
	}
	r.Findings = append(r.Findings, sriov.Difference{Field: "hardware address of the allocated device", Want: strings.Join(macs, " or "), Found: i.MAC})
}

// CompareVF returns where the PF's view of a VF differs from what its network's
// configuration asks for.
func CompareVF(w *plan.VF, d *sriov.Snapshot) []sriov.Difference {
	var r Report
	compareVF(&r, w, d)
	return r.Findings
}

// compareVF compares the PF's view of a VF with the configuration. A GUID is compared
// where the kernel tells one; a configuration with a GUID alone does not need the PF to
// be visible.
func compareVF(r *Report, w *plan.VF, d *sriov.Snapshot) {
	if d == nil || d.VF == nil {
		if *w == (plan.VF{GUID: w.GUID}) {
			return
		}
		r.Findings = append(r.Findings, sriov.Difference{Field: "virtual function", Want: "visible on its physical function", Found: "not found there"})
		return
	}
	number := func(field string, want *int, found int) {
		if want != nil {
			r.expect(field, fmt.Sprint(*want), fmt.Sprint(found))
		}
	}
	word := func(field, want, found string) {
		if want != "" {
			r.expect(field, strings.ToLower(want), found)
		}
	}
	number("VLAN of the VF", w.VLAN, d.VF.VLAN)
	number("VLAN QoS of the VF", w.VLANQoS, d.VF.VLANQoS)
	number("minimum rate of the VF", w.MinTxRate, d.VF.MinTxRate)
	number("maximum rate of the VF", w.MaxTxRate, d.VF.MaxTxRate)
	word("VLAN protocol of the VF", w.VLANProto, d.VF.VLANProto)
	word("spoof check of the VF", w.SpoofChk, onOff(d.VF.SpoofChk))
	word("trust of the VF", w.Trust, onOff(d.VF.Trust))
	word("link state of the VF", w.LinkState, d.VF.LinkState)
	if w.MAC != "" {
		r.expectMAC("MAC of the VF", w.MAC, cmp.Or(d.VF.MAC, "none: an InfiniBand VF has a GUID"))
	}
	if w.GUID != "" && d.VF.NodeGUID != "" { // else the kernel tells none
		r.expectMAC("node GUID of the VF", w.GUID, d.VF.NodeGUID)
		r.expectMAC("port GUID of the VF", w.GUID, d.VF.PortGUID)
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
