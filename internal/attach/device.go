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

// A VF serves one sandbox at a time. The kubelet may hand it to the next pod
// while the DEL of the last is still to come, or to be tried again; so each VF
// is claimed by its sandbox from before ADD until its DEL has succeeded. While
// the claim stands and the sandbox lives, the next ADD is refused and tried
// again. Where the sandbox is dead, its namespace gone or the node rebooted, the
// next ADD takes the claim over, and the late DEL finds that it has no longer a
// device to release. A DEL claims the VF as well, since its sandbox may have given
// it back in an earlier DEL that left something else: no ADD gets a VF that is
// being released. A VF that cannot be made as it was before its last use is in
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
		killpoint.Here("device claimed")
		return r.usable(ctx, a)
	case journal.RepairKey(a.Device.PCIAddress):
		return errBeingReset()
	}
	if _, damage := r.Journal.Open(holder); cnierr.Is(damage, cnierr.JournalCorrupt) {
		return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s may still have it: %w", holder, damage).
			WithFix("see that its pod is deleted, whose DEL gives the device back and sets the file aside")
	}
	return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s still has it: its DEL has not come, or has not succeeded", holder).
		WithFix("nothing, if that pod is being deleted; else see why its DEL fails")
}

// errBeingReset tells that the reconciler has the VF.
func errBeingReset() error {
	return cnierr.New("claim device", cnierr.TryAgain, "it is being reset").WithFix("nothing; the runtime will try again")
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
	if i < 0 || last.Before(i) == nil && !slices.Contains(last.Unreleased(), i) {
		return nil // it died before it tried anything
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

// fence claims the attachment's VF for the DEL of its sandbox, and reports whether
// it is fenced off instead: whether another sandbox has taken it over. Then nothing
// of the VF may be touched. The error is of kind [cnierr.JournalCorrupt] where no
// journal says whose it is.
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
		// Dead or alive: who has a journal has its own DEL to come.
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
	r.about(a).Warn("device serves another sandbox by now, and is left to it", "holder", holder.String())
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

// giveBack makes a VF stand as before ADD, and gives its claim back. failed is what
// the delegate's DEL ended with: after an error the VF is made so as soon as it is
// out of the sandbox, whatever a delegate may go on to refuse, and stays claimed for
// the next DEL. A VF that cannot be made so goes into quarantine, and the pod can go.
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

// standAsBefore restores the VF of attachment i, and ends a quarantine in which the
// sandbox's next owner had put it but died. After another boot the VF is as that
// made it: what the old boot found is nothing to go back to.
func (r *run) standAsBefore(ctx context.Context, i int) error {
	if !r.inv.Conf.RestoreDevices || !r.entry.SameBoot() {
		return nil
	}
	a := &r.entry.Plan.Attachments[i]
	before, err := verify.Recorded(r.entry.Before(i)) // which may be the damaged line
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

// unclaim gives back the claim of the attachment's VF, if there is one.
func (r *run) unclaim(ctx context.Context, a *plan.Attachment) error {
	if !isClaimed(a) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	return r.Journal.Unclaim(ctx, a.Device.PCIAddress, keyOf(r.inv))
}
