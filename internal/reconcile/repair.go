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

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// ErrNotRepaired says that a finding was left as it is, for a reason that is no
// failure: somebody works on the VF, has it by now, or the kind cannot be repaired.
var ErrNotRepaired = errors.New("not repaired")

// repairTime bounds one repair.
const repairTime = 10 * time.Second

// Repair undoes a finding: a stranded VF is made as its sandbox found it, what is
// left over is reset. The journal of a dead sandbox stays for its DEL.
func (r *Reconciler) Repair(ctx context.Context, f Finding) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	if r.excluded(f) {
		return fmt.Errorf("%w: its PF is excluded", ErrNotRepaired)
	}
	switch f.Kind {
	case Stranded:
		return r.repairStranded(ctx, f)
	case Leftover:
		return r.repairLeftover(ctx, f)
	}
	return fmt.Errorf("%w: %s VFs are only reported", ErrNotRepaired, f.Kind)
}

// excluded reports whether the configuration excludes the VF's PF.
func (r *Reconciler) excluded(f Finding) bool {
	name, _, err := r.Host.PFNetDev(f.Device)
	return slices.Contains(r.Exclude, f.PF) || err == nil && slices.Contains(r.Exclude, name)
}

// repairStranded restores the VF of a dead sandbox, under that sandbox's lock.
func (r *Reconciler) repairStranded(ctx context.Context, f Finding) (err error) {
	owners, err := r.owners()
	if err != nil {
		return err
	}
	o := owners[f.Device]
	if o == nil || o.alive || o.key.String() != f.Sandbox {
		return fmt.Errorf("%w: it has another owner by now", ErrNotRepaired)
	}
	if !o.entry.SameBoot() {
		return fmt.Errorf("%w: the node was booted since, and nothing is left to be undone", ErrNotRepaired)
	}
	lock, err := r.Journal.TryLock(o.key)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("%w: an operation on its sandbox is under way", ErrNotRepaired)
	}
	defer func() { err = errors.Join(err, lock.Unlock(false)) }()
	before := &sriov.Snapshot{}
	if err := json.Unmarshal(o.entry.Before(o.attachment), before); err != nil {
		return cnierr.New("read recorded device", cnierr.JournalCorrupt, "%w", err)
	}
	return r.restore(ctx, f, before)
}

// repairLeftover resets a VF that nobody has, under its claim.
func (r *Reconciler) repairLeftover(ctx context.Context, f Finding) (err error) {
	self := journal.Key{ContainerID: "reconcile", IfName: f.Device}
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
	// The kubelet may have given it away since the scan. An ADD that comes from
	// now on waits for the claim.
	now, err := r.Scan(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(now, f) {
		return fmt.Errorf("%w: it is not as it was found", ErrNotRepaired)
	}
	fn, err := r.Host.Function(f.Device)
	if err != nil {
		return err
	}
	state, err := verify.Capture(r.Host, deviceOf(fn))
	if err != nil {
		return err
	}
	return r.restore(ctx, f, state.Neutral())
}

// restore writes down what is about to be done, then does it.
func (r *Reconciler) restore(ctx context.Context, f Finding, before *sriov.Snapshot) error {
	fn, err := r.Host.Function(f.Device)
	if err != nil {
		return err
	}
	if err := r.record(f, before); err != nil {
		return err
	}
	_, err = verify.Restore(ctx, r.Host, deviceOf(fn), before)
	return err
}

// repairsFile is the log of repairs in the journal's directory, a line of JSON
// each, written before the repair.
const repairsFile = "repairs.log"

func (r *Reconciler) record(f Finding, to *sriov.Snapshot) (err error) {
	line, err := json.Marshal(struct {
		Time time.Time `json:"time"`
		Finding
		To *sriov.Snapshot `json:"to"`
	}{time.Now().UTC(), f, to})
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(r.Journal.Path, repairsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return cnierr.New("record repair", cnierr.IO, "%w", err)
	}
	_, err = file.Write(append(line, '\n'))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return cnierr.New("record repair", cnierr.IO, "%w", err)
	}
	return nil
}
