// Package reconcile compares what is known of the node's VFs: the journals of
// sandboxes, the kubelet's allocations, sysfs, and what each PF says of its VFs.
//
// [Reconciler.Scan] names what does not fit together:
//
//   - stranded: the sandbox that has the VF is dead, its network namespace gone
//     or the node booted since, and its DEL has not come;
//   - vanished: a living sandbox has the VF by its journal, and the node does not
//     have it any more;
//   - replaced: a living sandbox has lost its VF, which is at its address again: as
//     another function, at another driver, or with its network device on the host;
//   - drifted: the PF does not say of a sandbox's VF what the network's
//     configuration asks;
//   - unreleased: the DEL of a living sandbox that has the VF has failed, and the
//     next is still to come;
//   - orphaned: the VF belongs to nobody, but its network device is not on the
//     host;
//   - leftover: the VF belongs to nobody, but its PF still holds settings for it;
//   - quarantined: the VF could not be made as it was before its last use, and is
//     not so yet. No sandbox gets it until it is.
//
// A VF belongs to a sandbox when a journal names it, and to a pod when the
// kubelet has allocated it. Where the kubelet's allocations cannot be read, every
// VF belongs to somebody: an answer that is missing never means free. So does a VF
// that a pod may have under an ID that does not say which device it is, see
// [Allocated].
//
// [Reconciler.Run] scans at its start and when something changed, and tells what
// comes and goes; [Reconciler.Findings] is what it found last.
//
// [Reconciler.Repair] undoes what can be undone without entering a network
// namespace. It works under the same claim as an ADD, so the two exclude each
// other, and writes down what it is about to do before it does it.
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

// The kinds, see the package comment.
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

// Living reports whether the kind is of a VF that a living sandbox has: what is
// wrong concerns its pod, and nothing is repaired below it.
func (k Kind) Living() bool { return k == Vanished || k == Replaced || k == Drifted || k == Unreleased }

// free reports whether the kind is of a VF that nobody has.
func (k Kind) free() bool { return k == Orphaned || k == Leftover }

// Finding is one VF that is not as it should be.
type Finding struct {
	Kind    Kind   `json:"kind"`
	Device  string `json:"device"` // PCI address
	PF      string `json:"pf"`     // PCI address
	VFIndex int    `json:"vfIndex"`
	Sandbox string `json:"sandbox,omitempty"` // the journal's key; empty without one
	Pod     string `json:"pod,omitempty"`     // namespace/name
	PodUID  string `json:"podUID,omitempty"`
	Network string `json:"network,omitempty"`
	Text    string `json:"text"` // what was found, for people
}

// String renders the finding as a sentence.
func (f Finding) String() string {
	s := fmt.Sprintf("VF %s (%d of %s) is %s: %s", f.Device, f.VFIndex, f.PF, f.Kind, f.Text)
	if f.Sandbox != "" {
		s += fmt.Sprintf("; sandbox %s of pod %s, network %s", f.Sandbox, f.Pod, f.Network)
	}
	return s
}

// belongs says whose the VF is, or was.
func (f Finding) belongs(sandbox string, pod plan.Pod, network string) Finding {
	f.Sandbox, f.Pod, f.PodUID, f.Network = sandbox, pod.String(), pod.UID, network
	return f
}

// of says that the VF belongs to an owner, or did.
func (f Finding) of(o *owner) Finding {
	return f.belongs(o.key.String(), o.entry.Plan.Pod, o.entry.Plan.Attachments[o.attachment].Name)
}

// Reconciler looks at one node.
type Reconciler struct {
	Journal journal.Dir
	Host    sriov.Host
	// Allocated returns what the kubelet has given to pods. An error means that it is
	// not known.
	Allocated func(context.Context) (*Allocated, error)
	// Watch are directories in which something changes when the kubelet starts or
	// allocates. They need not exist yet.
	Watch []string
	// Exclude are PFs, by PCI address or network device, whose VFs are reported but
	// never repaired; see [ParseExclude]. A name that the node does not have may be
	// any PF's.
	Exclude []string
	// Tell is called when a finding comes and when one was repaired, with the
	// [Reason] of its kind or [ReasonRepaired]; nil for nobody. The same finding is told once while it stands.
	Tell func(ctx context.Context, reason string, f Finding)
	// Count is called after each repair that [Reconciler.Run] has tried; nil for nobody.
	Count func(k Kind, failed bool)

	deaf time.Duration // deafTime where it is 0

	mu    sync.Mutex
	found []Finding // by the last scan of Run
}

// Findings returns what the last scan of [Reconciler.Run] found, in order of PCI
// address; nil before the first. It looks at nothing, and may be called at any
// time, also while Run scans. The caller may keep the slice, and must not change it.
func (r *Reconciler) Findings() []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

// keep remembers what a scan found.
func (r *Reconciler) keep(found []Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = found
}

// vf is all that is known of one VF.
type vf struct {
	sriov.Function
	state      *sriov.Snapshot     // nil when the node does not have it
	owner      *owner              // nil for none
	quarantine *journal.Quarantine // nil for none
	unreadable error               // why it is not known whether there is one
	allocated  bool
	doubt      string // why a pod may have it all the same, empty for nothing
}

// Allocated is what the kubelet has given to pods.
type Allocated struct {
	Given map[string]bool // PCI addresses
	// Opaque are devices of which their IDs do not say for good which function they
	// are. Where no journal does either, one may be any function but those in Advertised.
	Opaque []Opaque
	// Advertised are the PCI addresses of what device plugins advertise: an ID that
	// says nothing is none of theirs.
	Advertised map[string]bool
}

// Opaque is a device by a device plugin's own word: vf-2, or the name of a network
// device, which goes with that into a pod.
type Opaque struct {
	Resource, ID string
	Pod, PodUID  string // who has it, namespace/name; either may be empty
}

// String is how messages name the device.
func (o Opaque) String() string { return fmt.Sprintf("%q of %s", o.ID, o.Resource) }

// isOf reports whether the pod is the one that has the device.
func (o Opaque) isOf(p plan.Pod) bool {
	return o.PodUID != "" && o.PodUID == p.UID || o.PodUID == "" && o.Pod == p.String()
}

// with adds what journals know: which functions opaque devices are, and devices that
// are opaque to them too. What a journal has under a device's ID is given to whoever
// has the device, also where that is a dead sandbox's: it may be the pod's own. But
// only a journal of the same pod says for good what the pod has.
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

// doubt says why a pod may have a device that is not among those given, empty where
// none may.
func (a *Allocated) doubt(device string) string {
	if len(a.Opaque) == 0 || a.Advertised[device] {
		return ""
	}
	return "a pod has device " + a.Opaque[0].String() + ", which may be it: the ID does not say which device that is, and no device plugin advertises this one by an ID that does"
}

// owner is the sandbox whose journal has a VF.
type owner struct {
	key        journal.Key
	entry      *journal.Entry
	attachment int
	alive      bool
}

// errUnseen is wrapped by the error of a scan that has seen no VF at all, as while
// they come and go: what was found before stands.
var errUnseen = errors.New("the node's VFs cannot be seen")

// Scan returns what is wrong, in order of PCI address. Journals that cannot be
// read and PFs that cannot be asked are errors beside what was found; VFs that an
// unreadable journal may own are not judged. One that looks like nobody's, and that
// a pod may have under an ID that does not name it, is an error too.
func (r *Reconciler) Scan(ctx context.Context) ([]Finding, error) {
	vfs, err := r.survey(ctx)
	var out []Finding
	for i := range vfs {
		v := &vfs[i]
		for _, f := range judge(v) {
			switch {
			case f.Kind.Living() && !r.unchanged(v.owner):
			case f.Kind.free() && v.doubt != "":
				err = errors.Join(err, fmt.Errorf("VF %s may be %s, which cannot be told: %s", f.Device, f.Kind, v.doubt))
			default:
				out = append(out, f)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.Device, b.Device) })
	return out, err
}

// unchanged reports whether nothing has been done on a sandbox since its journal was
// read. An ADD or a DEL that came meanwhile may have changed the VF before it was
// looked at: what was read before says nothing of it then, and the journal's change
// is the next scan's cause.
func (r *Reconciler) unchanged(o *owner) bool {
	now, err := r.Journal.Open(o.key)
	return err == nil && len(now.Steps) == len(o.entry.Steps)
}

// survey gathers what is known of every VF that the node or a journal has.
func (r *Reconciler) survey(ctx context.Context) ([]vf, error) {
	all, err := inventory.Read(r.Host.Root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnseen, err)
	}
	known, problem := r.owners()
	var functions []sriov.Function
	for _, f := range all.Functions {
		if f.IsVF() {
			functions = append(functions, f.Function)
		}
	}
	allocated := &Allocated{}
	if len(functions) > 0 { // else the kubelet, which limits how often it is asked, has pods to serve
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
		if v.state = states[f.Address]; v.state != nil { // else the problem is in err
			v.quarantine, v.unreadable = r.Journal.Quarantined(f.Address)
			out = append(out, v)
		}
	}
	missed, err := r.missed(known.of)
	return append(out, missed...), errors.Join(problem, err)
}

// missed gathers what is known of VFs that sandboxes have and that are not among
// the node's: they are gone, or another function has the address.
func (r *Reconciler) missed(owners map[string]*owner) (out []vf, err error) {
	for address, o := range owners {
		d := o.entry.Plan.Attachments[o.attachment].Device
		if d.PF == "" {
			continue // it was no VF
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
	of     map[string]*owner // by PCI address; of several the one that claimed last
	named  map[name][]*owner // of this boot, by what device plugins call their devices
	opaque []Opaque          // devices of which the journal does not say which function they are
}

// name is what a device plugin calls a device.
type name struct{ resource, id string }

// owners reads the journals of all sandboxes. Beside an error it returns what it could
// read.
func (r *Reconciler) owners() (*owners, error) {
	out := &owners{of: map[string]*owner{}, named: map[name][]*owner{}}
	keys, err := r.Journal.List()
	if err != nil {
		return out, err
	}
	var problems []error
	for _, k := range keys {
		entry, err := r.Journal.Open(k)
		if errors.Is(err, os.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("journal %s: %w", k, err))
			continue
		}
		out.add(k, entry)
	}
	return out, errors.Join(problems...)
}

// add adds what one journal knows.
func (o *owners) add(k journal.Key, entry *journal.Entry) {
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
		if last := o.of[address]; last == nil || last.entry.Created.Before(entry.Created) {
			o.of[address] = had
		}
		if called := (name{a.Device.Resource, a.Device.ID}); entry.SameBoot() {
			o.named[called] = append(o.named[called], had)
		}
	}
}

// judge says what is wrong with one VF.
func judge(v *vf) []Finding {
	f := Finding{Device: v.Address, PF: v.PF, VFIndex: v.VFIndex}
	if v.owner != nil && v.owner.alive {
		return judgeAlive(v, f)
	}
	if v.owner == nil {
		out := judgeQuarantined(v, f)
		if len(out) > 0 || v.allocated { // of a pod that is being started, or that Manifold did not attach
			return out
		}
		return judgeFree(v, f)
	}
	f = f.of(v.owner)
	f.Kind, f.Text = Stranded, "its sandbox is gone, and its DEL has not come"
	if v.state == nil {
		f.Text += "; the node does not have the VF any more"
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

// judgeQuarantined judges a VF that no living sandbox has, by its quarantine. One
// that is as it must be by now is in order, and so is another function that came in
// its place: the next ADD takes it out.
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
	f.Text = "no pod gets it until it is as it was: " + sriov.Sentences(left)
	return []Finding{f}
}

// judgeAlive judges a VF that a living sandbox has.
func judgeAlive(v *vf, f Finding) []Finding {
	f = f.of(v.owner)
	if v.state == nil {
		f.Kind, f.Text = Vanished, "a living sandbox has it, and the node does not have it any more"
		return []Finding{f}
	}
	switch phase, problem := v.owner.phase(); phase {
	case journal.Verified, journal.Routed:
	case journal.ReleaseFailed:
		f.Kind, f.Text = Unreleased, "the DEL of its sandbox, which lives, has failed: "+problem
		return []Finding{f}
	default:
		return nil // an ADD or a DEL is under way
	}
	if lost := v.owner.lost(v.state); len(lost) > 0 {
		f.Kind, f.Text = Replaced, "its living sandbox does not have it any more: "+sriov.Sentences(lost)
		return []Finding{f}
	}
	want := v.owner.entry.Plan.Attachments[v.owner.attachment].Want.VF
	if want == nil {
		return nil // nothing was asked
	}
	drift := verify.CompareVF(want, v.state)
	if len(drift) == 0 {
		return nil
	}
	f.Kind, f.Text = Drifted, sriov.Sentences(drift)
	return []Finding{f}
}

// phase returns the last phase of the owner's attachment and its error. While a DEL is
// tried again it is that of the one that failed: else what is found of it would go and
// come with each.
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

// lost compares the VF with what its owner got.
func (o *owner) lost(now *sriov.Snapshot) []sriov.Difference {
	before, err := verify.Recorded(o.entry.Before(o.attachment))
	if err != nil {
		return nil // it is not known what the owner got
	}
	var checked []string
	written := o.entry.Plan.Attachments[o.attachment].Device.Written // which nothing was compared with
	for _, s := range o.entry.Steps {
		if s.Attachment == o.attachment && s.Phase == journal.Verified && !written {
			checked = s.Checked
		}
	}
	return verify.Lost(before, now, checked)
}
