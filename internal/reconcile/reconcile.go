// Package reconcile compares what is known of the node's VFs: the journals of sandboxes,
// the kubelet's allocations, sysfs, and what each PF reports of its VFs.
//
// [Reconciler.Scan] finds what does not fit together:
//
//   - stranded: the sandbox that has the VF is dead, because its network namespace is
//     gone or the node has rebooted, and its DEL has not come;
//   - vanished: a living sandbox has the VF by its journal, but the node no longer has it;
//   - replaced: a living sandbox has lost its VF, and a VF is at that address again: as
//     another function, with another driver, or with its network device on the host;
//   - drifted: the PF does not report for a sandbox's VF what the network's configuration
//     asks for;
//   - unreleased: the DEL of a living sandbox that has the VF has failed, and the next DEL
//     has not come;
//   - orphaned: the VF belongs to nobody, but its network device is not on the host;
//   - leftover: the VF belongs to nobody, but its PF still holds settings for it;
//   - quarantined: the VF could not be restored to its state before its last use, and is
//     still not in that state. No sandbox gets it until it is.
//
// A VF belongs to a sandbox if a journal names it, and to a pod if the kubelet has
// allocated it. If the kubelet's allocations cannot be read, every VF belongs to
// somebody: a missing answer never means free. A VF also belongs to somebody if a pod may
// have it under an ID that does not tell which device it is; see [Allocated].
//
// [Reconciler.Run] scans at its start and after changes, and tells which findings come
// and go. [Reconciler.Findings] returns what it found last.
//
// [Reconciler.Repair] undoes what can be undone without entering a network namespace. It
// works under the same claim as an ADD, so the two exclude each other, and it records
// what it is about to do before it does it.
package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/inventory"
)

// Kind is what is wrong with a VF.
type Kind string

// The kinds; see the package comment.
const (
	Stranded    Kind = "stranded"
	Vanished    Kind = "vanished"
	Replaced    Kind = "replaced"
	Drifted     Kind = "drifted"
	Unreleased  Kind = "unreleased"
	Orphaned    Kind = "orphaned"
	Leftover    Kind = "leftover"
	Quarantined Kind = "quarantined"
)

// Kinds returns every kind.
func Kinds() []Kind {
	return []Kind{Stranded, Vanished, Replaced, Drifted, Unreleased, Orphaned, Leftover, Quarantined}
}

// Living reports whether a living sandbox has the VF: the finding concerns its pod, and
// the VF is not repaired under it.
func (k Kind) Living() bool { return k == Vanished || k == Replaced || k == Drifted || k == Unreleased }

// free reports whether nobody has the VF.
func (k Kind) free() bool { return k == Orphaned || k == Leftover }

// Finding is one VF that is not as it should be.
type Finding struct {
	Kind    Kind   `json:"kind"`
	Device  string `json:"device"` // PCI address
	PF      string `json:"pf"`     // PCI address
	VFIndex int    `json:"vfIndex"`
	Sandbox string `json:"sandbox,omitempty"` // the journal's key; empty if no journal names the VF
	Pod     string `json:"pod,omitempty"`     // namespace/name
	PodUID  string `json:"podUID,omitempty"`
	Network string `json:"network,omitempty"`
	Text    string `json:"text"` // what was found, in words
}

// String returns the finding as a sentence.
func (f Finding) String() string {
	s := fmt.Sprintf("VF %s (%d of %s) is %s: %s", f.Device, f.VFIndex, f.PF, f.Kind, f.Text)
	if f.Sandbox != "" {
		s += fmt.Sprintf("; sandbox %s of pod %s, network %s", f.Sandbox, f.Pod, f.Network)
	}
	return s
}

// belongs returns the finding with the sandbox, pod and network that have or had the VF.
func (f Finding) belongs(sandbox string, pod plan.Pod, network string) Finding {
	f.Sandbox, f.Pod, f.PodUID, f.Network = sandbox, pod.String(), pod.UID, network
	return f
}

// of returns the finding with the owner that has or had the VF.
func (f Finding) of(o *owner) Finding {
	return f.belongs(o.key.String(), o.entry.Plan.Pod, o.entry.Plan.Attachments[o.attachment].Name)
}

// Reconciler examines the VFs of one node.
type Reconciler struct {
	Journal journal.Dir
	Host    sriov.Host
	// Allocated returns what the kubelet has given to pods. An error means that this is
	// not known.
	Allocated func(context.Context) (*Allocated, error)
	// Watch are directories in which something changes when the kubelet starts or
	// allocates. They need not exist yet.
	Watch []string
	// Exclude are PFs, by PCI address or network device, whose VFs are reported but never
	// repaired; see [ParseExclude]. A name that the node does not have may be the name of
	// any PF.
	Exclude []string
	// Tell is called once for each finding when it comes and, if it is repaired, after
	// the repair. The reason is the [Reason] of its kind or [ReasonRepaired]. Tell may be
	// nil.
	Tell func(ctx context.Context, reason string, f Finding)
	// Count is called after each repair that [Reconciler.Run] tried. It may be nil.
	Count func(k Kind, failed bool)

	deaf time.Duration // 0 means deafTime

	mu    sync.Mutex
	found []Finding // by the last scan of Run
}

// Findings returns what the last scan of [Reconciler.Run] found, in the order of PCI
// addresses; nil before the first scan. It may be called at any time, also while Run
// scans. The caller may keep the slice but must not change it.
func (r *Reconciler) Findings() []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

// keep stores what a scan found.
func (r *Reconciler) keep(found []Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = found
}

// vf is everything known of one VF.
type vf struct {
	sriov.Function
	state      *sriov.Snapshot     // nil if the node does not have the VF
	owner      *owner              // nil if nobody has it
	quarantine *journal.Quarantine // nil if it is not in quarantine
	unreadable error               // why its quarantine could not be read
	allocated  bool
	doubt      string // why a pod may have it although allocated is false; empty if none may
}

// Allocated is what the kubelet has given to pods.
type Allocated struct {
	Given map[string]bool // PCI addresses
	// Opaque are devices whose IDs do not tell reliably which function they are. If no
	// journal tells either, such a device may be any function except those in Advertised.
	Opaque []Opaque
	// Advertised are the PCI addresses that device plugins advertise. A device with an
	// opaque ID is none of these.
	Advertised map[string]bool
}

// Opaque is a device under a device plugin's own ID, such as vf-2, or under the name of a
// network device, which moves into the pod together with the device.
type Opaque struct {
	Resource, ID string
	Pod, PodUID  string // the pod that has it, as namespace/name, and its UID; either may be empty
}

// String returns the device's name for messages.
func (o Opaque) String() string { return fmt.Sprintf("%q of %s", o.ID, o.Resource) }

// isOf reports whether the pod is the one that has the device.
func (o Opaque) isOf(p plan.Pod) bool {
	return o.PodUID != "" && o.PodUID == p.UID || o.PodUID == "" && o.Pod == p.String()
}

// with returns the allocations with what journals know added: which functions the opaque
// devices are, and devices that are opaque to the journals too. A function that a journal
// has under a device's ID counts as given to whoever has the device, even if the journal
// is a dead sandbox's: it may be that of the same pod. But only a journal of the same pod
// settles what the pod has; otherwise the device stays opaque.
func (a *Allocated) with(known *owners) *Allocated {
	out := &Allocated{Given: map[string]bool{}, Opaque: slices.Clone(known.opaque), Advertised: a.Advertised}
	maps.Copy(out.Given, a.Given)
	for _, o := range a.Opaque {
		told := false
		for _, had := range known.named[name{o.Resource, o.ID}] {
			out.Given[had.entry.Plan.Attachments[had.attachment].Device.PCIAddress] = true
			told = told || o.isOf(had.entry.Plan.Pod)
		}
		if !told {
			out.Opaque = append(out.Opaque, o)
		}
	}
	return out
}

// doubt tells why a pod may have a device that is not in Given; empty if none may.
func (a *Allocated) doubt(device string) string {
	if len(a.Opaque) == 0 || a.Advertised[device] {
		return ""
	}
	return "a pod has device " + a.Opaque[0].String() + ", which may be this VF: its ID does not tell which device it is, and no device plugin advertises this VF by an ID that does"
}

// owner is the sandbox whose journal names a VF.
type owner struct {
	key        journal.Key
	entry      *journal.Entry
	attachment int
	alive      bool
}

// errUnseen is wrapped by the error of a scan that saw no VF at all, which happens while
// VFs come and go. Earlier findings then stand.
var errUnseen = errors.New("the node's VFs cannot be seen")

// Scan returns what is wrong, in the order of PCI addresses. Its error joins what kept it
// from judging: journals that cannot be read, PFs that cannot be queried, and VFs that
// look free but that a pod may have under an opaque ID. Findings are valid beside an
// error. A VF that an unreadable journal may own is not judged.
func (r *Reconciler) Scan(ctx context.Context) ([]Finding, error) {
	vfs, err := r.survey(ctx)
	var out []Finding
	for i := range vfs {
		v := &vfs[i]
		for _, f := range judge(v) {
			switch {
			case f.Kind.Living() && !r.unchanged(v.owner):
			case f.Kind.free() && v.doubt != "":
				err = errors.Join(err, fmt.Errorf("VF %s may be %s, which is not known: %s", f.Device, f.Kind, v.doubt))
			default:
				out = append(out, f)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.Device, b.Device) })
	return out, err
}

// unchanged reports whether nothing has been done on a sandbox since its journal was
// read. A concurrent ADD or DEL may have changed the VF before it was examined, so the
// journal read earlier says nothing about it. The journal's change causes the next scan.
func (r *Reconciler) unchanged(o *owner) bool {
	now, err := r.Journal.Open(o.key)
	return err == nil && len(now.Steps) == len(o.entry.Steps)
}

// survey gathers what is known of every VF of the node or of a journal.
func (r *Reconciler) survey(ctx context.Context) ([]vf, error) {
	all, err := inventory.Read(r.Host.Root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnseen, err)
	}
	known, problem := r.owners(ctx)
	var functions []sriov.Function
	for _, f := range all.Functions {
		if f.IsVF() {
			functions = append(functions, f.Function)
		}
	}
	allocated := &Allocated{}
	if len(functions) > 0 { // without VFs, spare the kubelet: it limits how often it is asked, and has pods to serve
		if allocated, err = r.Allocated(ctx); err != nil {
			problem = errors.Join(problem, fmt.Errorf("allocations: %w", err))
		}
	}
	told := problem == nil
	if told {
		allocated = allocated.with(known)
	}
	states, err := r.Host.Snapshots(functions)
	problem = errors.Join(problem, err)
	var out []vf
	for _, f := range functions {
		v := vf{Function: f, owner: known.of[f.Address], allocated: !told}
		if told {
			v.allocated, v.doubt = allocated.Given[f.Address], allocated.doubt(f.Address)
		}
		delete(known.of, f.Address)
		if v.state = states[f.Address]; v.state != nil { // otherwise err has the problem
			v.quarantine, v.unreadable = r.Journal.Quarantined(f.Address)
			out = append(out, v)
		}
	}
	missed, err := r.missed(known.of)
	return append(out, missed...), errors.Join(problem, err)
}

// missed gathers what is known of VFs that sandboxes have and the node does not: they are
// gone, or another function has the address.
func (r *Reconciler) missed(owners map[string]*owner) (out []vf, err error) {
	for address, o := range owners {
		d := o.entry.Plan.Attachments[o.attachment].Device
		if d.PF == "" {
			continue // it was not a VF
		}
		v := vf{Function: sriov.Function{Address: address, PF: d.PF, VFIndex: d.VFIndex}, owner: o, allocated: true}
		var e error
		v.state, e = r.Host.Snapshot(address)
		if e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("%s: %w", address, e))
			continue
		}
		out = append(out, v)
	}
	return out, err
}

// owners is what journals know of devices.
type owners struct {
	of     map[string]*owner // by PCI address
	named  map[name][]*owner // by the device plugin's name for the device; of this boot only
	opaque []Opaque          // devices whose journal does not tell which function they are
}

// name is a device plugin's name for a device.
type name struct{ resource, id string }

// owners reads the journals of all sandboxes. Beside an error it returns what it could
// read.
func (r *Reconciler) owners(ctx context.Context) (*owners, error) {
	out := &owners{of: map[string]*owner{}, named: map[name][]*owner{}}
	keys, err := r.Journal.List()
	if err != nil {
		return out, err
	}
	var problems []error
	for _, k := range keys {
		entry, err := r.Journal.Open(k)
		if errors.Is(err, os.ErrNotExist) {
			continue // released in the meantime
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("journal %s: %w", k, err))
			continue
		}
		err = out.add(k, entry, func(device string) (journal.Key, error) { return r.Journal.Holder(ctx, device) })
		if err != nil {
			problems = append(problems, err)
		}
	}
	return out, errors.Join(problems...)
}

// add adds what one journal knows. Of two sandboxes that have the same device, the owner
// is the one that has claimed it, as holder tells; without such a claim it is the one that
// was begun later, by a clock that may have been set back.
func (o *owners) add(k journal.Key, entry *journal.Entry, holder func(device string) (journal.Key, error)) error {
	for i, a := range entry.Plan.Attachments {
		phase, _ := entry.Phase(i)
		if a.Device == nil || phase == "" || phase == journal.Released || phase == journal.Untouched {
			continue
		}
		address := a.Device.PCIAddress
		if address == "" {
			if !sriov.IsAuxiliary(a.Device.ID) {
				o.opaque = append(o.opaque, Opaque{Resource: a.Device.Resource, ID: a.Device.ID})
			}
			continue
		}
		had := &owner{key: k, entry: entry, attachment: i, alive: entry.Gone() == ""}
		last := o.of[address]
		if last != nil {
			claimed, err := holder(address)
			if err != nil {
				return err
			}
			if claimed == k || claimed != last.key && last.entry.Created.Before(entry.Created) {
				last = nil
			}
		}
		if last == nil {
			o.of[address] = had
		}
		if called := (name{a.Device.Resource, a.Device.ID}); entry.SameBoot() {
			o.named[called] = append(o.named[called], had)
		}
	}
	return nil
}

// judge returns what is wrong with one VF.
func judge(v *vf) []Finding {
	f := Finding{Device: v.Address, PF: v.PF, VFIndex: v.VFIndex}
	if v.owner != nil && v.owner.alive {
		return judgeAlive(v, f)
	}
	if v.owner == nil {
		out := judgeQuarantined(v, f)
		if len(out) > 0 || v.allocated { // allocated to a pod that is starting, or that Manifold did not attach
			return out
		}
		return judgeFree(v, f)
	}
	f = f.of(v.owner)
	f.Kind, f.Text = Stranded, "its sandbox is gone, and its DEL has not come"
	if v.state == nil {
		f.Text += "; the node no longer has the VF"
		return []Finding{f}
	}
	return append(judgeQuarantined(v, Finding{Device: v.Address, PF: v.PF, VFIndex: v.VFIndex}), f)
}

// judgeFree judges a VF that nobody has.
func judgeFree(v *vf, f Finding) []Finding {
	var out []Finding
	if v.Driver != "" && !v.Userspace() && len(v.state.NetDevs) == 0 && v.state.PF != "" {
		f.Kind, f.Text = Orphaned, "no sandbox and no pod has it, but its network device is not on the host"
		out = append(out, f)
	}
	if left := v.state.Neutral().Compare(v.state); len(left) > 0 {
		f.Kind, f.Text = Leftover, "no sandbox and no pod has it: "+sriov.Sentences(left)
		out = append(out, f)
	}
	return out
}

// judgeQuarantined judges a VF that no living sandbox has by its quarantine. A VF that is
// meanwhile in the required state is in order, and so is another function that took its
// place: the next ADD takes either out of quarantine.
func judgeQuarantined(v *vf, f Finding) []Finding {
	f.Kind = Quarantined
	if v.unreadable != nil {
		f.Text = v.unreadable.Error()
		return []Finding{f}
	}
	q := v.quarantine
	if q == nil || !q.SameBoot() {
		return nil
	}
	f = f.belongs(q.Sandbox, q.Pod, q.Network)
	to, err := verify.Recorded(q.To)
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	left := to.Compare(v.state)
	if len(left) == 0 || !to.SameFunction(v.state) {
		return nil
	}
	f.Text = "no pod gets it until it is restored: " + sriov.Sentences(left)
	return []Finding{f}
}

// judgeAlive judges a VF that a living sandbox has.
func judgeAlive(v *vf, f Finding) []Finding {
	f = f.of(v.owner)
	if v.state == nil {
		f.Kind, f.Text = Vanished, "a living sandbox has it, but the node no longer has it"
		return []Finding{f}
	}
	switch phase, problem := v.owner.phase(); phase {
	case journal.Verified, journal.Routed:
	case journal.ReleaseFailed:
		f.Kind, f.Text = Unreleased, "the DEL of its living sandbox has failed: "+problem
		return []Finding{f}
	default:
		return nil // an ADD or a DEL is running
	}
	if lost := v.owner.lost(v.state); len(lost) > 0 {
		f.Kind, f.Text = Replaced, "its living sandbox no longer has it: "+sriov.Sentences(lost)
		return []Finding{f}
	}
	want := v.owner.entry.Plan.Attachments[v.owner.attachment].Want.VF
	if want == nil {
		return nil // the configuration asks for nothing
	}
	drift := verify.CompareVF(want, v.state)
	if len(drift) == 0 {
		return nil
	}
	f.Kind, f.Text = Drifted, sriov.Sentences(drift)
	return []Finding{f}
}

// phase returns the last phase of the owner's attachment and its error. While a failed
// DEL is retried, it returns the phase of the failure: otherwise the finding would go and
// come with each attempt.
func (o *owner) phase() (journal.Phase, string) {
	phase, problem := o.entry.Phase(o.attachment)
	if phase != journal.Releasing {
		return phase, problem
	}
	for _, s := range o.entry.Steps {
		if s.Attachment == o.attachment && s.Phase == journal.ReleaseFailed {
			phase, problem = s.Phase, s.Error
		}
	}
	return phase, problem
}

// lost compares the VF with the one that its owner got.
func (o *owner) lost(now *sriov.Snapshot) []sriov.Difference {
	before, err := verify.Recorded(o.entry.Before(o.attachment))
	if err != nil {
		return nil // what the owner got is not known
	}
	var checked []string
	written := o.entry.Plan.Attachments[o.attachment].Device.Written // the configuration names such a device itself: verification compared nothing with it
	for _, s := range o.entry.Steps {
		if s.Attachment == o.attachment && s.Phase == journal.Verified && !written {
			checked = s.Checked
		}
	}
	return verify.Lost(before, now, checked)
}
