// Package reconcile compares what is known of the node's VFs: the journals of
// sandboxes, the kubelet's allocations, sysfs, and what each PF says of its VFs.
//
// [Reconciler.Scan] names what does not fit together:
//
//   - stranded: the sandbox that has the VF is dead, its network namespace gone
//     or the node booted since, and its DEL has not come;
//   - drifted: the PF does not say of a sandbox's VF what the network's
//     configuration asks;
//   - orphaned: the VF belongs to nobody, but its network device is not on the
//     host;
//   - leftover: the VF belongs to nobody, but its PF still holds settings for it.
//
// A VF belongs to a sandbox when a journal names it, and to a pod when the
// kubelet has allocated it. Where the kubelet's allocations cannot be read, every
// VF belongs to somebody: an answer that is missing never means free.
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
	"os"
	"slices"
	"sync"

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
	Stranded Kind = "stranded"
	Drifted  Kind = "drifted"
	Orphaned Kind = "orphaned"
	Leftover Kind = "leftover"
)

// Kinds returns every kind.
func Kinds() []Kind { return []Kind{Stranded, Drifted, Orphaned, Leftover} }

// Finding is one VF that is not as it should be.
type Finding struct {
	Kind    Kind   `json:"kind"`
	Device  string `json:"device"` // PCI address
	PF      string `json:"pf"`     // PCI address
	VFIndex int    `json:"vfIndex"`
	Sandbox string `json:"sandbox,omitempty"` // the journal's key; empty without one
	Pod     string `json:"pod,omitempty"`     // namespace/name
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

// Reconciler looks at one node.
type Reconciler struct {
	Journal journal.Dir
	Host    sriov.Host
	// Allocated returns the device IDs that the kubelet has given to pods. An
	// error means that it is not known.
	Allocated func(context.Context) (map[string]bool, error)
	// Exclude are PFs, by PCI address or network device, whose VFs are reported
	// but never repaired.
	Exclude []string

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
	inventory.Function
	state     *sriov.Snapshot // nil when it left the node meanwhile
	owner     *owner          // nil for none
	allocated bool
}

// owner is the sandbox whose journal has a VF.
type owner struct {
	key        journal.Key
	entry      *journal.Entry
	attachment int
	alive      bool
}

// Scan returns what is wrong, in order of PCI address. Journals that cannot be
// read and PFs that cannot be asked are errors beside what was found; VFs that
// an unreadable journal may own are not judged.
func (r *Reconciler) Scan(ctx context.Context) ([]Finding, error) {
	vfs, err := r.survey(ctx)
	var out []Finding
	for i := range vfs {
		out = append(out, judge(&vfs[i])...)
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.Device, b.Device) })
	return out, err
}

// survey gathers what is known of every VF of the node.
func (r *Reconciler) survey(ctx context.Context) ([]vf, error) {
	all, err := inventory.Read(r.Host.Root)
	if err != nil {
		return nil, err
	}
	owners, problem := r.owners()
	allocated, err := r.Allocated(ctx)
	if err != nil {
		problem = errors.Join(problem, fmt.Errorf("allocations: %w", err))
	}
	known := problem == nil
	var out []vf
	for _, f := range all.Functions {
		if !f.IsVF() {
			continue
		}
		v := vf{Function: f, owner: owners[f.Address], allocated: !known || allocated[f.Address]}
		v.state, err = verify.Capture(r.Host, deviceOf(&f.Function))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			problem = errors.Join(problem, fmt.Errorf("%s: %w", f.Address, err))
			continue
		}
		out = append(out, v)
	}
	return out, problem
}

// deviceOf is a VF as package verify knows it.
func deviceOf(f *sriov.Function) *plan.Device {
	return &plan.Device{ID: f.Address, PCIAddress: f.Address, PF: f.PF, VFIndex: f.VFIndex, Driver: f.Driver, Userspace: f.Userspace()}
}

// owners returns the sandboxes that have devices, by PCI address; of several the
// one that claimed last.
func (r *Reconciler) owners() (map[string]*owner, error) {
	keys, err := r.Journal.List()
	if err != nil {
		return nil, err
	}
	out := map[string]*owner{}
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
		for i, a := range entry.Plan.Attachments {
			phase, _ := entry.Phase(i)
			if a.Device == nil || a.Device.PCIAddress == "" || phase == "" || phase == journal.Released || phase == journal.Untouched {
				continue
			}
			o := &owner{key: k, entry: entry, attachment: i, alive: entry.Gone() == ""}
			if last := out[a.Device.PCIAddress]; last == nil || last.entry.Created.Before(entry.Created) {
				out[a.Device.PCIAddress] = o
			}
		}
	}
	return out, errors.Join(problems...)
}

// judge says what is wrong with one VF.
func judge(v *vf) []Finding {
	f := Finding{Device: v.Address, PF: v.PF, VFIndex: v.VFIndex}
	if v.state == nil {
		return nil
	}
	if v.owner != nil {
		return judgeOwned(v, f)
	}
	if v.allocated {
		return nil // of a pod that is being started, or that Manifold did not attach
	}
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

// judgeOwned judges a VF that a journal has.
func judgeOwned(v *vf, f Finding) []Finding {
	a := &v.owner.entry.Plan.Attachments[v.owner.attachment]
	f.Sandbox, f.Pod, f.Network = v.owner.key.String(), v.owner.entry.Plan.Pod.String(), a.Name
	if !v.owner.alive {
		f.Kind, f.Text = Stranded, "its sandbox is gone, and its DEL has not come"
		return []Finding{f}
	}
	if phase, _ := v.owner.entry.Phase(v.owner.attachment); phase != journal.Verified && phase != journal.Routed || a.Want.VF == nil {
		return nil // an ADD or a DEL is under way, or nothing was asked
	}
	if drift := verify.CompareVF(a.Want.VF, v.state); len(drift) > 0 {
		f.Kind, f.Text = Drifted, sriov.Sentences(drift)
		return []Finding{f}
	}
	return nil
}
