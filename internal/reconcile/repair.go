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

// ErrNotRepaired says that a finding was left as it is, for a reason that is no
// failure: somebody works on the VF, has it by now, or the kind cannot be repaired.
var ErrNotRepaired = errors.New("not repaired")

// repairTime bounds one repair.
const repairTime = 10 * time.Second

// Repair undoes a finding: a stranded or quarantined VF is made as its sandbox
// found it, what is left over is reset. The journal of a dead sandbox stays for its
// DEL. A VF with which this fails is in quarantine from then on. What the kubelet has
// given to a pod is never touched, also where the pod is the dead sandbox's own: the
// ADD of its next one makes the VF as it was.
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

// Accept takes a VF out of quarantine as it stands.
func (r *Reconciler) Accept(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	return r.claimed(ctx, Finding{Device: device}, func() error { return r.Journal.Release(device) })
}

// Proposal is a finding with what [Reconciler.Repair] would do about it.
type Proposal struct {
	Finding
	Action string `json:"action"` // what would be done, or has been
	Left   bool   `json:"left"`   // it stays as it is, for the reason that Action gives
}

// Proposals says of each finding what [Reconciler.Repair] would do, and changes
// nothing. Whether the VF is then still as it was found, only Repair looks, under
// its claim.
func (r *Reconciler) Proposals(ctx context.Context, found []Finding) []Proposal {
	out := []Proposal{}
	if len(found) == 0 {
		return out // the kubelet need not be asked
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

// remedy returns what undoes a finding, and why it is not to be done, empty where
// nothing of the finding itself is against it.
func (r *Reconciler) remedy(f Finding) (action, why string) {
	if why := r.excluded(f); why != "" {
		return "", why
	}
	switch f.Kind {
	case Stranded:
		return "make it as its sandbox found it", ""
	case Quarantined:
		return "make it as its sandbox found it", r.unknown(f.Device)
	case Leftover:
		return "reset it: no VLAN, no rates, link state auto", ""
	}
	return "", string(f.Kind) + " VFs are only reported"
}

// unknown says what to do about a quarantine that does not say how the VF must stand,
// empty where it does: there is nothing to make it as.
func (r *Reconciler) unknown(device string) string {
	q, err := r.Journal.Quarantined(device)
	if err == nil && q != nil {
		_, err = verify.Recorded(q.To)
	}
	if err == nil {
		return ""
	}
	return "how it must stand is not known: see to it, and take it as it stands with 'manifold-agent reconcile --accept " + device + "'"
}

// repairStranded restores the VF of a dead sandbox, under that sandbox's lock: an
// ADD that would take the VF over needs the lock to see that the sandbox is dead.
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
		return fmt.Errorf("%w: an operation on its sandbox is under way", ErrNotRepaired)
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

// dead returns the VF's owner while that is still the dead sandbox of key, by its
// journal and by its claim: an ADD claims a VF before its journal says that it
// tries. It is called under the sandbox's lock, without which nothing of this stays.
func (r *Reconciler) dead(ctx context.Context, f Finding, key journal.Key) (*owner, error) {
	known, err := r.owners()
	if err != nil {
		return nil, err
	}
	o := known.of[f.Device]
	if o == nil || o.alive || o.key != key {
		return nil, fmt.Errorf("%w: it has another owner by now", ErrNotRepaired)
	}
	if !o.entry.SameBoot() {
		return nil, fmt.Errorf("%w: the node was booted since, and nothing is left to be undone", ErrNotRepaired)
	}
	holder, err := r.Journal.Holder(ctx, f.Device)
	if err != nil {
		return nil, err
	}
	if holder != key {
		return nil, fmt.Errorf("%w: its sandbox has no claim to it any more", ErrNotRepaired)
	}
	return o, nil
}

// given says that the kubelet has given the VF to a pod, or may have, empty where it
// has not. The pod may use the VF and claim nothing, having no network on it; and the
// dead sandbox's own pod may be about to start anew.
func (r *Reconciler) given(ctx context.Context, device string) string {
	return r.allGiven(ctx)(device)
}

// allGiven asks the kubelet once, for given of any number of VFs.
func (r *Reconciler) allGiven(ctx context.Context) func(device string) string {
	allocated, err := r.Allocated(ctx)
	if err == nil {
		var known *owners
		if known, err = r.owners(); err == nil {
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

// claimed runs do on a VF that no sandbox has, under its claim. An ADD that comes
// meanwhile is told to try again.
func (r *Reconciler) claimed(ctx context.Context, f Finding, do func() error) (err error) {
	self := journal.RepairKey(f.Device)
	lock, err := r.Journal.TryLock(self)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("%w: another repair is under way", ErrNotRepaired)
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

// repairFree resets a VF that nobody has. The kubelet may have given it away since
// it was found, so that all is looked at again; an ADD that comes from now on waits
// for the claim.
func (r *Reconciler) repairFree(ctx context.Context, f Finding) error {
	vfs, err := r.survey(ctx)
	if err != nil {
		return fmt.Errorf("%w: who has it is not known: %w", ErrNotRepaired, err)
	}
	i := slices.IndexFunc(vfs, func(v vf) bool { return v.Address == f.Device })
	if i < 0 || !slices.Contains(judge(&vfs[i]), f) {
		return fmt.Errorf("%w: it is not as it was found", ErrNotRepaired)
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

// restore writes down what is about to be done, then makes the VF as in q.To. If
// that fails, it is in quarantine, else in none.
func (r *Reconciler) restore(ctx context.Context, f Finding, q journal.Quarantine) error {
	to, err := verify.Recorded(q.To)
	if err != nil {
		return err
	}
	fn, err := r.Host.Function(f.Device)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: the node does not have it any more", ErrNotRepaired)
	}
	if err != nil {
		return err
	}
	if !to.SameFunction(&sriov.Snapshot{Instance: fn.Instance}) {
		return fmt.Errorf("%w: it was made anew, and nothing is left to be undone", ErrNotRepaired)
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

// repairsFile is the log of repairs in the journal's directory, a line of JSON
// each, written before the repair. One that has grown to maxRepairs bytes is kept
// under the name oldRepairs, in place of the one before it.
const (
	repairsFile = "repairs.log"
	oldRepairs  = "repairs.log.1"
	maxRepairs  = 1 << 20
)

// record appends to the log of repairs.
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

// repairs opens the log of repairs, locked against the agent and commands beside
// it: two that move it away would lose what they keep.
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

// makeRoom locks the log, and moves it away when it is full. It reports whether it
// has been moved, by whomever.
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
