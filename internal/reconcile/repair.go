package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// ErrNotRepaired means that a finding was left alone for a reason that is not a failure:
// somebody is working on the VF or has it by now, or the kind cannot be repaired.
var ErrNotRepaired = errors.New("not repaired")

// repairTime bounds one repair.
const repairTime = 10 * time.Second

// Repair undoes a finding. A stranded or quarantined VF gets the state in which its
// sandbox found it; settings that are left over are reset. The journal of a dead sandbox
// stays for its DEL. If the repair fails, the VF is in quarantine from then on. Repair
// never touches a VF that the kubelet has given to a pod, even if that is the pod of the
// dead sandbox: the ADD of the pod's next sandbox restores the VF. The error is
// [ErrNotRepaired] if the VF was left alone.
func (r *Reconciler) Repair(ctx context.Context, f Finding) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	if why := r.excluded(f); why != "" {
		return fmt.Errorf("%w: %s", ErrNotRepaired, why)
	}
	switch f.Kind {
	case Stranded:
		return r.repairStranded(ctx, f)
	case Leftover, Quarantined:
		return r.claimed(ctx, f, func() error { return r.repairFree(ctx, f) })
	}
	return fmt.Errorf("%w: %s VFs are only reported", ErrNotRepaired, f.Kind)
}

// Accept takes a VF out of quarantine in its current state.
func (r *Reconciler) Accept(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	return r.claimed(ctx, Finding{Device: device}, func() error { return r.Journal.Release(device) })
}

// Proposal is a finding with what [Reconciler.Repair] would do about it.
type Proposal struct {
	Finding
	Action string `json:"action"` // what would be done, or was done
	Left   bool   `json:"left"`   // the VF is left alone, for the reason in Action
}

// Proposals returns for each finding what [Reconciler.Repair] would do, and changes
// nothing. Only Repair checks, under its claim, that the VF is still as it was found.
func (r *Reconciler) Proposals(ctx context.Context, found []Finding) []Proposal {
	out := []Proposal{}
	if len(found) == 0 {
		return out // without asking the kubelet
	}
	given := r.allGiven(ctx)
	for _, f := range found {
		action, why := r.remedy(f)
		if why == "" {
			why = given(f.Device)
		}
		if why != "" {
			action = "nothing: " + why
		}
		out = append(out, Proposal{Finding: f, Action: action, Left: why != ""})
	}
	return out
}

// remedy returns what would undo a finding, and why it must not be done; why is empty if
// nothing in the finding itself forbids it.
func (r *Reconciler) remedy(f Finding) (action, why string) {
	if why := r.excluded(f); why != "" {
		return "", why
	}
	switch f.Kind {
	case Stranded:
		return "restore the state in which its sandbox found it", ""
	case Quarantined:
		return "restore the state in which its sandbox found it", r.unknown(f.Device)
	case Leftover:
		return "reset it: no VLAN, no rates, link state auto", ""
	}
	return "", string(f.Kind) + " VFs are only reported"
}

// unknown tells what to do about a quarantine that does not record the VF's required
// state; empty if it does. Without that state there is nothing to restore.
func (r *Reconciler) unknown(device string) string {
	q, err := r.Journal.Quarantined(device)
	if err == nil && q != nil {
		_, err = verify.Recorded(q.To)
	}
	if err == nil {
		return ""
	}
	return "the state to restore is not known: check the VF, and accept its current state with 'manifold-agent reconcile --accept " + device + "'"
}

// repairStranded restores the VF of a dead sandbox under that sandbox's lock: an ADD that
// would take over the VF needs the lock to see that the sandbox is dead.
func (r *Reconciler) repairStranded(ctx context.Context, f Finding) (err error) {
	key, ok := journal.ParseKey(f.Sandbox)
	if !ok {
		return fmt.Errorf("%w: %q names no sandbox", ErrNotRepaired, f.Sandbox)
	}
	lock, err := r.Journal.TryLock(key)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("%w: an operation on its sandbox is running", ErrNotRepaired)
	}
	defer func() {
		_, missing := r.Journal.Open(key)
		err = errors.Join(err, lock.Unlock(errors.Is(missing, os.ErrNotExist)))
	}()
	o, err := r.dead(ctx, f, key)
	if err != nil {
		return err
	}
	if why := r.given(ctx, f.Device); why != "" {
		return fmt.Errorf("%w: %s", ErrNotRepaired, why)
	}
	return r.restore(ctx, f, journal.Quarantine{
		Device: f.Device, Sandbox: f.Sandbox, Pod: o.entry.Plan.Pod, Network: f.Network, To: o.entry.Before(o.attachment),
	})
}

// dead returns the VF's owner if that is still the dead sandbox of key, both by its
// journal and by its claim: an ADD claims a VF before its journal says so. The caller
// holds the sandbox's lock; without it the answer may be outdated at once.
func (r *Reconciler) dead(ctx context.Context, f Finding, key journal.Key) (*owner, error) {
	known, err := r.owners(ctx)
	if err != nil {
		return nil, err
	}
	o := known.of[f.Device]
	if o == nil || o.alive || o.key != key {
		return nil, fmt.Errorf("%w: another sandbox has it by now", ErrNotRepaired)
	}
	if !o.entry.SameBoot() {
		return nil, fmt.Errorf("%w: the node has rebooted, and nothing is left to undo", ErrNotRepaired)
	}
	holder, err := r.Journal.Holder(ctx, f.Device)
	if err != nil {
		return nil, err
	}
	if holder != key {
		return nil, fmt.Errorf("%w: its sandbox no longer has a claim to it", ErrNotRepaired)
	}
	return o, nil
}

// given tells that the kubelet has given the VF to a pod, or may have; empty if it has
// not. Such a pod may use the VF without a claim if it has no network on it, and the dead
// sandbox's own pod may be about to start again.
func (r *Reconciler) given(ctx context.Context, device string) string {
	return r.allGiven(ctx)(device)
}

// allGiven asks the kubelet once and returns given for any number of VFs.
func (r *Reconciler) allGiven(ctx context.Context) func(device string) string {
	allocated, err := r.Allocated(ctx)
	if err == nil {
		var known *owners
		if known, err = r.owners(ctx); err == nil {
			allocated = allocated.with(known)
		}
	}
	return func(device string) string {
		switch {
		case err != nil:
			return "whether the kubelet has given it to a pod is not known: " + err.Error()
		case allocated.Given[device]:
			return "the kubelet has given it to a pod"
		}
		return allocated.doubt(device)
	}
}

// claimed runs do, under the VF's claim, on a VF that no sandbox has. A concurrent ADD is
// told to try again.
func (r *Reconciler) claimed(ctx context.Context, f Finding, do func() error) (err error) {
	self := journal.RepairKey(f.Device)
	lock, err := r.Journal.TryLock(self)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("%w: another repair is running", ErrNotRepaired)
	}
	defer func() { err = errors.Join(err, lock.Unlock(true)) }()
	holder, err := r.Journal.Claim(ctx, f.Device, self, func(k journal.Key) (bool, error) {
		_, err := r.Journal.Open(k)
		return !errors.Is(err, os.ErrNotExist), nil
	})
	if err != nil {
		return err
	}
	if holder != self {
		return fmt.Errorf("%w: sandbox %s has it by now", ErrNotRepaired, holder)
	}
	defer func() { err = errors.Join(err, r.Journal.Unclaim(context.WithoutCancel(ctx), f.Device, self)) }()
	return do()
}

// repairFree restores or resets a VF that nobody has. The kubelet may have given it away
// since it was found, so everything is examined again. From here on an ADD waits for the
// claim.
func (r *Reconciler) repairFree(ctx context.Context, f Finding) error {
	vfs, err := r.survey(ctx)
	if err != nil {
		return fmt.Errorf("%w: it is not known who has it: %w", ErrNotRepaired, err)
	}
	i := slices.IndexFunc(vfs, func(v vf) bool { return v.Address == f.Device })
	if i < 0 || !slices.Contains(judge(&vfs[i]), f) {
		return fmt.Errorf("%w: it is no longer as it was found", ErrNotRepaired)
	}
	v := &vfs[i]
	if v.allocated {
		return fmt.Errorf("%w: the kubelet has given it to a pod", ErrNotRepaired)
	}
	if v.doubt != "" {
		return fmt.Errorf("%w: %s", ErrNotRepaired, v.doubt)
	}
	if f.Kind == Quarantined {
		if why := r.unknown(f.Device); why != "" {
			return fmt.Errorf("%w: %s", ErrNotRepaired, why)
		}
		return r.restore(ctx, f, *v.quarantine)
	}
	to, err := json.Marshal(v.state.Neutral())
	if err != nil {
		return err
	}
	return r.restore(ctx, f, journal.Quarantine{Device: f.Device, To: to})
}

// restore records what it is about to do, then gives the VF the state q.To. The VF is in
// quarantine afterwards if that fails, and out of quarantine if it succeeds.
func (r *Reconciler) restore(ctx context.Context, f Finding, q journal.Quarantine) error {
	to, err := verify.Recorded(q.To)
	if err != nil {
		return err
	}
	fn, err := r.Host.Function(f.Device)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: the node no longer has it", ErrNotRepaired)
	}
	if err != nil {
		return err
	}
	if !to.SameFunction(&sriov.Snapshot{Instance: fn.Instance}) {
		return fmt.Errorf("%w: it was created anew, and nothing is left to undo", ErrNotRepaired)
	}
	if err := r.record(f, to); err != nil {
		return err
	}
	d := &plan.Device{ID: fn.Address}
	verify.StandsOn(d, fn)
	if _, err = verify.Restore(ctx, r.Host, d, to); err != nil {
		q.Reason = err.Error()
		return errors.Join(err, r.Journal.Quarantine(q))
	}
	return r.Journal.Release(f.Device)
}

// repairsFile is the log of repairs in the journal's directory. Each line is a JSON
// object, written before its repair. A log that reaches maxRepairs bytes is renamed to
// oldRepairs and replaces the previous one.
const (
	repairsFile = "repairs.log"
	oldRepairs  = "repairs.log.1"
	maxRepairs  = 1 << 20
)

// record appends the repair of f to the state to to the log of repairs.
func (r *Reconciler) record(f Finding, to *sriov.Snapshot) (err error) {
	line, err := json.Marshal(struct {
		Time time.Time `json:"time"`
		Finding
		To *sriov.Snapshot `json:"to"`
	}{time.Now().UTC(), f, to})
	if err != nil {
		return err
	}
	file, err := r.repairs()
	if err == nil {
		_, err = file.Write(append(line, '\n'))
		err = errors.Join(err, file.Sync(), file.Close())
	}
	if err != nil {
		return cnierr.New("record repair", cnierr.IO, "%w", err)
	}
	return nil
}

// repairs opens the log of repairs and locks it against the agent and commands that run
// beside it: two that rename it at the same time would lose a log.
func (r *Reconciler) repairs() (*os.File, error) {
	path := filepath.Join(r.Journal.Path, repairsFile)
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		moved, err := r.makeRoom(path, file)
		if err == nil && !moved {
			return file, nil
		}
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, err
		}
	}
}

// makeRoom locks the log and renames it if it is full. It reports whether the log has
// been renamed, by this or another process.
func (r *Reconciler) makeRoom(path string, file *os.File) (moved bool, err error) {
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return false, err
	}
	is, err := file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case !os.SameFile(is, named):
		return true, nil
	case is.Size() < maxRepairs:
		return false, nil
	}
	return true, os.Rename(path, filepath.Join(r.Journal.Path, oldRepairs))
}
