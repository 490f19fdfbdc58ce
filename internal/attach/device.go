package attach

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// A VF serves one sandbox at a time. The kubelet may hand it to the next pod
// while the DEL of the last is still to come, or to be tried again; so each VF
// is claimed by its sandbox from before ADD until its DEL has succeeded. While
// the claim stands and the sandbox lives, the next ADD is refused and tried
// again. Where the sandbox is dead, its namespace gone or the node rebooted, the
// next ADD takes the claim over, and the late DEL finds that it has no longer a
// device to release. A VF that cannot be made as it was before its last use is in
// quarantine, and refused until it is.

// claimTime bounds the wait for a device's claim, which is held for moments.
const claimTime = 5 * time.Second

// restoreTime bounds the wait for a network device that the kernel gives back
// from a network namespace that is gone.
const restoreTime = 5 * time.Second

// isClaimed reports whether the attachment's device is one that is claimed.
func isClaimed(a *plan.Attachment) bool {
	return a.Device != nil && a.Device.PF != "" && a.Device.PCIAddress != ""
}

// claim takes the attachment's VF for this sandbox, and makes it usable. A VF that
// is taken over from a dead sandbox is in quarantine from before it is taken over
// until it is as that one found it, whoever dies meanwhile.
func (r *run) claim(ctx context.Context, a *plan.Attachment) error {
	if !isClaimed(a) {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	holder, err := r.Journal.Claim(waiting, a.Device.PCIAddress, keyOf(r.inv), func(k journal.Key) (bool, error) {
		last, held, err := r.stillHeld(k)
		if err != nil || held {
			return held, err
		}
		return false, r.takeOver(a, last)
	})
	if err != nil {
		return err
	}
	switch holder {
	case keyOf(r.inv):
		return r.usable(ctx, a)
	case journal.RepairKey(a.Device.PCIAddress):
		return cnierr.New("claim device", cnierr.TryAgain, "it is being reset").WithFix("nothing; the runtime will try again")
	}
	return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s still has it: its DEL has not come, or has not succeeded", holder).
		WithFix("nothing, if that pod is being deleted; else see why its DEL fails")
}

// takeOver puts the VF of a dead sandbox, whose journal is last, into quarantine.
// Without a journal, or of another boot, nothing is left of it.
func (r *run) takeOver(a *plan.Attachment, last *journal.Entry) error {
	if last == nil || !last.SameBoot() || !r.inv.Conf.RestoreDevices {
		return nil
	}
	i := slices.IndexFunc(last.Plan.Attachments, func(b plan.Attachment) bool {
		return b.Device != nil && b.Device.PCIAddress == a.Device.PCIAddress
	})
	if i < 0 || last.Before(i) == nil {
		return nil
	}
	return r.Journal.Quarantine(quarantineOf(last, i, "its sandbox is dead, and its DEL has not come"))
}

// quarantineOf is the quarantine of the VF of attachment i of a sandbox: it must
// stand as that sandbox found it.
func quarantineOf(e *journal.Entry, i int, reason string) journal.Quarantine {
	a := &e.Plan.Attachments[i]
	return journal.Quarantine{
		Device: a.Device.PCIAddress, Reason: reason, Sandbox: e.Key.String(), Pod: e.Plan.Pod, Network: a.Name, To: e.Before(i),
	}
}

// usable takes the VF out of quarantine if it is as it must be, or can be made so.
func (r *run) usable(ctx context.Context, a *plan.Attachment) error {
	q, err := r.Journal.Quarantined(a.Device.PCIAddress)
	if err != nil || q == nil || !r.inv.Conf.RestoreDevices {
		return err
	}
	if q.SameBoot() {
		to, err := verify.Recorded(q.To)
		if err == nil {
			err = r.restore(ctx, a, to)
		}
		if err != nil {
			return cnierr.New("claim device", cnierr.Quarantined, "in quarantine since %s, last used by pod %s: %w",
				q.Since.Format(time.RFC3339), q.Pod, err).
				WithFix("reset it by hand, or take it as it is with 'manifold-agent reconcile --accept %s'", q.Device)
		}
	}
	return r.Journal.Release(q.Device)
}

// stillHeld reports whether the sandbox k may still have its devices, and
// returns its journal's entry, nil for none.
func (r *run) stillHeld(k journal.Key) (*journal.Entry, bool, error) {
	lock, err := r.Journal.TryLock(k)
	if err != nil || lock == nil {
		return nil, true, err // an operation on it is under way
	}
	entry, err := r.Journal.Open(k)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, lock.Unlock(true)
	}
	// Of a journal that cannot be read it is not known; its DEL sets it aside.
	held := err != nil || entry.SameBoot() && ns.IsNSorErr(entry.Plan.NetNS) == nil
	return entry, held, lock.Unlock(false)
}

// restore makes a VF stand as before, waiting for its network device.
func (r *run) restore(ctx context.Context, a *plan.Attachment, before *sriov.Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	changed, err := verify.Restore(ctx, r.host(), a.Device, before)
	for _, f := range changed {
		r.about(a).Warn("device was restored", "found", f)
	}
	return err
}

// fenced reports whether another sandbox has taken over the attachment's VF.
func (r *run) fenced(ctx context.Context, a *plan.Attachment) (bool, error) {
	if !isClaimed(a) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	holder, err := r.Journal.Holder(ctx, a.Device.PCIAddress)
	if err != nil || holder == (journal.Key{}) || holder == keyOf(r.inv) {
		return false, err
	}
	_, err = r.Journal.Open(holder)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	r.about(a).Warn("device serves another sandbox by now, and is left to it", "holder", holder.String())
	return true, nil
}

// giveBack makes a VF stand as before ADD, and gives its claim back. A VF that
// cannot be made so goes into quarantine, and the pod can go. After another boot
// the VF is as that made it: what the old boot found is nothing to go back to.
func (r *run) giveBack(ctx context.Context, i int) error {
	a := &r.entry.Plan.Attachments[i]
	if !isClaimed(a) {
		return nil
	}
	before, err := r.before(i)
	if err == nil && r.inv.Conf.RestoreDevices && r.entry.SameBoot() {
		err = r.restore(ctx, a, before)
	}
	if cnierr.Is(err, cnierr.TeardownIncomplete) {
		r.warn("%s: device %s goes into quarantine: %v", a.Name, a.Device.ID, err)
		err = r.Journal.Quarantine(quarantineOf(r.entry, i, err.Error()))
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	return r.Journal.Unclaim(ctx, a.Device.PCIAddress, keyOf(r.inv))
}
