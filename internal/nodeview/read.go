package nodeview

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/inventory"
)

// Sources is where a view is read from.
type Sources struct {
	Node    string
	Journal journal.Dir
	SysRoot string // directory that holds sys/
	// Holders returns the holders of allocated devices, by PCI address. An error means
	// that they are unknown.
	Holders func(context.Context) (map[string]Holder, error)
	// Findings returns the problems of the node's VFs.
	Findings func(context.Context) ([]reconcile.Finding, error)
	// Proposals returns what a repair would do about findings.
	Proposals func(context.Context, []reconcile.Finding) []reconcile.Proposal
}

// Read reads the node once.
func Read(ctx context.Context, s Sources) *View {
	v := &View{Version: Version, Node: s.Node, Time: time.Now().UTC()}
	v.attachments(s.Journal)
	holders, err := s.Holders(ctx)
	v.problem("the kubelet's allocations", err)
	v.devices(s.SysRoot, holders)
	found, err := s.Findings(ctx)
	v.problem("the reconciler", err)
	v.findings(found)
	v.Proposals = s.Proposals(ctx, found)
	return v
}

// problem records an error for the reader.
func (v *View) problem(what string, err error) {
	if err != nil {
		v.Problems = append(v.Problems, what+": "+err.Error())
	}
}

// attachments reads the journals.
func (v *View) attachments(dir journal.Dir) {
	keys, err := dir.List()
	v.problem("the journals", err)
	for _, k := range keys {
		entry, err := dir.Open(k)
		if errors.Is(err, os.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			v.problem("sandbox "+k.ContainerID, err)
			continue
		}
		v.add(entry)
	}
	slices.SortStableFunc(v.Attachments, func(a, b Attachment) int {
		return cmp.Or(cmp.Compare(a.Pod.String(), b.Pod.String()), cmp.Compare(a.Sandbox, b.Sandbox))
	})
}

// Attachments returns the attachments in one journal, and the parts that could not be
// read.
func Attachments(e *journal.Entry) ([]Attachment, []string) {
	v := &View{}
	v.add(e)
	return v.Attachments, v.Problems
}

// add adds a journal's attachments.
func (v *View) add(e *journal.Entry) {
	for i := range e.Plan.Attachments {
		if a, shown := v.attachment(e, i); shown {
			v.Attachments = append(v.Attachments, a)
		}
	}
}

// stateOf maps the latest phase in a journal to the state that is shown. It lacks the
// phases that leave nothing behind.
var stateOf = map[journal.Phase]string{
	"": StateWaiting, journal.Trying: StateTrying, journal.Attached: StateAttached, journal.Verified: StateAttached, journal.Routed: StateAttached,
	journal.Releasing: StateReleasing, journal.ReleaseFailed: StateReleaseFailed,
}

// attachment returns attachment i of a journal. shown is false if nothing is left of
// the attachment.
func (v *View) attachment(e *journal.Entry, i int) (a Attachment, shown bool) {
	p := &e.Plan.Attachments[i]
	phase, problem := e.Phase(i)
	state, shown := stateOf[phase]
	if !shown {
		return a, false
	}
	a = Attachment{
		Pod: e.Plan.Pod, Sandbox: e.Key.ContainerID, Network: p.Name, Default: p.Default, Interface: p.IfName, Device: p.Device,
		State: state, Since: e.Created, Error: problem, Reason: p.Reason, VerifyMode: p.Want.Verify, Gone: e.Gone(),
	}
	last := StateWaiting
	for _, s := range e.Steps {
		if s.Attachment != i {
			continue
		}
		if now := stateOf[s.Phase]; now != last {
			a.Since, last = s.Time, now
		}
		if s.Phase == journal.Verified {
			at := s.Time
			a.Verified, a.Differs, a.VerifiedAt = s.Checked, s.Differs, &at
		}
	}
	result := e.Result(i)
	if result == nil {
		return a, true
	}
	st, err := netattach.NewStatus(result, netattach.StatusOptions{IfName: p.IfName})
	v.problem(fmt.Sprintf("pod %s, network %s: recorded result", e.Plan.Pod, p.Name), err)
	if err == nil {
		a.Addresses, a.MAC, a.MTU = st.IPs, st.MAC, st.MTU
	}
	return a, true
}

// devices reads the VFs, and joins them with their holders.
func (v *View) devices(sysRoot string, holders map[string]Holder) {
	all, err := inventory.Read(sysRoot)
	if err != nil {
		v.problem("sysfs", err)
		return
	}
	attached := map[string]*Attachment{}
	for i := range v.Attachments {
		if a := &v.Attachments[i]; a.Device != nil && a.Device.PCIAddress != "" && a.State != StateWaiting {
			attached[a.Device.PCIAddress] = a
		}
	}
	fs := sriov.FS{Root: sysRoot}
	for _, f := range all.Functions {
		if !f.IsVF() {
			continue
		}
		d := Device{
			Address: f.Address, PF: f.PF, VFIndex: f.VFIndex, NUMANode: f.NUMANode, Driver: f.Driver, IOMMUGroup: f.IOMMUGroup,
			NetDevs: f.NetDevs, Use: UseFree,
		}
		if name, _, err := fs.PFNetDev(f.Address); err == nil {
			d.PFNetDev = name // a PF that a userspace program drives has none
		}
		if holders == nil {
			d.Use = UseUnknown
		}
		if h, ok := holders[f.Address]; ok {
			d.Use, d.Holder = UseAllocated, &h
		}
		if a := attached[f.Address]; a != nil {
			d.take(a)
		}
		v.Devices = append(v.Devices, d)
	}
}

// take makes a sandbox's attachment the device's user. It keeps the kubelet's holder if
// that is another pod: the reader must see the contradiction.
func (d *Device) take(a *Attachment) {
	d.Use, d.Sandbox, d.Network, d.Interface = UseAttached, a.Sandbox, a.Network, a.Interface
	if d.Holder == nil {
		d.Holder = &Holder{Container: a.Device.Container, Resource: a.Device.Resource}
	}
	if d.Holder.Pod == "" && (d.Holder.PodUID == "" || d.Holder.PodUID == a.Pod.UID) {
		d.Holder.Pod, d.Holder.PodUID = a.Pod.String(), a.Pod.UID
	}
}

// findings gives each device its own findings.
func (v *View) findings(found []reconcile.Finding) {
	v.Findings = found
	for i := range v.Devices {
		for _, f := range found {
			if f.Device == v.Devices[i].Address {
				v.Devices[i].Findings = append(v.Devices[i].Findings, f)
			}
		}
	}
}
