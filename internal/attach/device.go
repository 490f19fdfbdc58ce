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
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// A VF serves one sandbox at a time. The kubelet may give it to the next pod before the
// last pod's DEL has come or succeeded. Therefore the sandbox claims the VF before ADD
// and holds the claim until DEL has succeeded. While the claim stands and the sandbox
// lives, the next ADD is refused and tried again. When the sandbox is dead (its
// namespace is gone or the node was rebooted), the next ADD takes the claim over, and
// the late DEL finds that it no longer has a device to release. DEL claims the VF too,
// because an earlier DEL may have given it back and then left something else: no ADD
// gets a VF that is being released. A VF that cannot be restored to its state before
// the last use is in quarantine, and is refused until it has that state.

// claimTime is how long to wait for a device's claim, which is only held for moments.
const claimTime = 5 * time.Second

// restoreTime is how long to wait for a netdev that the kernel returns from a network
// namespace that is gone.
const restoreTime = 5 * time.Second

// isClaimed reports whether the attachment's device is subject to claims: a VF.
func isClaimed(a *plan.Attachment) bool {
	return a.Device != nil && a.Device.PF != "" && a.Device.PCIAddress != ""
}

// claim claims the attachment's VF for this sandbox and makes it usable. A VF taken
// over from a dead sandbox enters quarantine before the takeover and leaves it once its
// state before that sandbox is restored, so no crash in between loses the need to
// restore it.
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
		killpoint.Here("device claimed")
		return r.usable(ctx, a)
	case journal.RepairKey(a.Device.PCIAddress):
		return errBeingReset()
	}
	if _, damage := r.Journal.Open(holder); cnierr.Is(damage, cnierr.JournalCorrupt) {
		return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s may still have it: %w", holder, damage).
			WithFix("delete its pod: the DEL gives the device back and sets the damaged journal aside")
	}
	return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s still has it: its DEL has not come or has not succeeded", holder).
		WithFix("wait if that pod is being deleted; otherwise see why its DEL fails")
}

// errBeingReset is the error of a claim while the reconciler holds the VF.
func errBeingReset() error {
	return cnierr.New("claim device", cnierr.TryAgain, "it is being reset").WithFix("wait; the runtime will try again")
}

// takeOver puts the VF of a dead sandbox into quarantine. last is that sandbox's
// journal. Without a journal, or after a reboot, nothing is left of that sandbox.
func (r *run) takeOver(a *plan.Attachment, last *journal.Entry) error {
	if last == nil || !last.SameBoot() || !r.inv.Conf.RestoreDevices {
		return nil
	}
	i := slices.IndexFunc(last.Plan.Attachments, func(b plan.Attachment) bool {
		return b.Device != nil && b.Device.PCIAddress == a.Device.PCIAddress
	})
	if i < 0 || last.Before(i) == nil && !slices.Contains(last.Unreleased(), i) {
		return nil // it died before it tried anything
	}
	return r.Journal.Quarantine(quarantineOf(last, i, "its sandbox is dead, and its DEL has not come"))
}

// quarantineOf returns the quarantine of the VF of attachment i of a sandbox: the VF
// must return to the state in which that sandbox found it.
func quarantineOf(e *journal.Entry, i int, reason string) journal.Quarantine {
	a := &e.Plan.Attachments[i]
	return journal.Quarantine{
		Device: a.Device.PCIAddress, Reason: reason, Sandbox: e.Key.String(), Pod: e.Plan.Pod, Network: a.Name, To: e.Before(i),
	}
}

// usable takes the VF out of quarantine if it has the required state or can be
// restored.
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
				WithFix("reset it by hand, or accept its present state with 'manifold-agent reconcile --accept %s'", q.Device)
		}
	}
	return r.Journal.Release(q.Device)
}

// stillHeld reports whether sandbox k may still have its devices, and returns its
// journal's entry, nil for none.
func (r *run) stillHeld(k journal.Key) (*journal.Entry, bool, error) {
	lock, err := r.Journal.TryLock(k)
	if err != nil || lock == nil {
		return nil, true, err // an operation on it is under way
	}
	entry, err := r.Journal.Open(k)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, lock.Unlock(true)
	}
	// An unreadable journal does not tell, so count the device as held. The sandbox's
	// DEL sets the journal aside.
	held := err != nil || entry.SameBoot() && lives(entry)
	return entry, held, lock.Unlock(false)
}

// lives reports whether the network namespace of a sandbox of this boot may still exist.
func lives(e *journal.Entry) bool {
	if ns.IsNSorErr(e.Plan.NetNS) != nil {
		return false
	}
	if isSameFile(e, e.Plan.NetNS) {
		return true
	}
	box, err := verify.OpenSandbox(e.Plan.NetNS)
	if err != nil {
		return true
	}
	defer box.Close()
	return !isAnothers(e, box)
}

// restore restores the VF to its state before, waiting for its netdev.
func (r *run) restore(ctx context.Context, a *plan.Attachment, before *sriov.Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	changed, err := verify.Restore(ctx, r.host(), a.Device, before)
	for _, f := range changed {
		r.about(a).Warn("device was restored", "found", f)
	}
	return err
}

// fence claims the attachment's VF for the DEL of its sandbox. fenced reports that
// another sandbox has taken the VF over instead; then nothing of the VF may be touched.
// The error is of kind [cnierr.JournalCorrupt] when no journal says who holds the VF.
func (r *run) fence(ctx context.Context, a *plan.Attachment) (fenced bool, err error) {
	if !isClaimed(a) {
		return false, nil
	}
	device := a.Device.PCIAddress
	waiting, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	holder, err := r.Journal.Claim(waiting, device, keyOf(r.inv), func(k journal.Key) (bool, error) {
		if k == journal.RepairKey(device) {
			_, held, err := r.stillHeld(k)
			return held, err
		}
		// Dead or alive: a sandbox with a journal has a DEL to come.
		_, err := r.Journal.Open(k)
		return !errors.Is(err, os.ErrNotExist), nil
	})
	switch {
	case err != nil:
		return false, err
	case holder == keyOf(r.inv):
		killpoint.Here("device claimed")
		return false, nil
	case holder == journal.RepairKey(device):
		return false, errBeingReset()
	}
	r.about(a).Warn("device already serves another sandbox and is left alone", "holder", holder.String())
	return true, nil
}

// confine puts the VF of attachment i into quarantine.
func (r *run) confine(i int, reason error) error {
	r.about(&r.entry.Plan.Attachments[i]).Warn("device goes into quarantine", "reason", reason)
	if !r.inv.Conf.RestoreDevices {
		return nil
	}
	return r.Journal.Quarantine(quarantineOf(r.entry, i, reason.Error()))
}

// giveBack restores the VF to its state before ADD and gives its claim back. failed is
// the error of the delegate's DEL. After an error the VF is restored only if it is out
// of the sandbox, since a delegate may go on refusing DEL, and stays claimed for the
// next DEL. A VF that cannot be restored goes into quarantine, and the pod can be
// deleted.
func (r *run) giveBack(ctx context.Context, i int, netns string, failed error) error {
	a := &r.entry.Plan.Attachments[i]
	if !isClaimed(a) || failed != nil && !r.isOut(a, netns) {
		return failed
	}
	err := r.standAsBefore(ctx, i)
	killpoint.Here("device restored")
	if failed != nil {
		return errors.Join(failed, err)
	}
	if cnierr.Is(err, cnierr.TeardownIncomplete) || cnierr.Is(err, cnierr.JournalCorrupt) {
		err = r.confine(i, err)
	}
	if err != nil {
		return err
	}
	return r.unclaim(ctx, a)
}

// isOut reports whether the attachment's interface is out of the sandbox.
func (r *run) isOut(a *plan.Attachment, netns string) bool {
	if netns == "" {
		return true
	}
	there, err := r.inSandbox(netns, a.IfName)
	return err == nil && !there
}

// standAsBefore restores the VF of attachment i. It ends a quarantine that the next
// owner of the VF imposed for this sandbox before it died. After a reboot there is
// nothing to restore: the state recorded in the old boot no longer applies.
func (r *run) standAsBefore(ctx context.Context, i int) error {
	if !r.inv.Conf.RestoreDevices || !r.entry.SameBoot() {
		return nil
	}
	a := &r.entry.Plan.Attachments[i]
	before, err := verify.Recorded(r.entry.Before(i)) // its line may be the damaged one
	if err != nil {
		return err
	}
	if err := r.restore(ctx, a, before); err != nil {
		return err
	}
	q, err := r.Journal.Quarantined(a.Device.PCIAddress)
	if err != nil || q == nil || q.Sandbox != r.entry.Key.String() {
		return nil //nolint:nilerr // the next ADD judges a quarantine that is not this sandbox's
	}
	return r.Journal.Release(a.Device.PCIAddress)
}

// unclaim gives back the claim of the attachment's VF, if it has one.
func (r *run) unclaim(ctx context.Context, a *plan.Attachment) error {
	if !isClaimed(a) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	return r.Journal.Unclaim(ctx, a.Device.PCIAddress, keyOf(r.inv))
}
