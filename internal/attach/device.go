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
// device to release.

// claimTime bounds the wait for a device's claim, which is held for moments.
const claimTime = 5 * time.Second

// restoreTime bounds the wait for a network device that the kernel gives back
// from a network namespace that is gone.
const restoreTime = 5 * time.Second

// isClaimed reports whether the attachment's device is one that is claimed.
func isClaimed(a *plan.Attachment) bool {
	return a.Device != nil && a.Device.PF != "" && a.Device.PCIAddress != ""
}

// claim takes the attachment's VF for this sandbox. A VF that is taken over from
// a dead one is first made as that one found it.
func (r *run) claim(ctx context.Context, a *plan.Attachment) error {
	if !isClaimed(a) {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	var last *journal.Entry
	holder, err := r.Journal.Claim(waiting, a.Device.PCIAddress, keyOf(r.inv), func(k journal.Key) (held bool, err error) {
		last, held, err = r.stillHeld(k)
		return held, err
	})
	if err != nil {
		return err
	}
	if holder == keyOf(r.inv) {
		return r.inherit(ctx, a, last)
	}
	return cnierr.New("claim device", cnierr.TryAgain, "sandbox %s still has it: its DEL has not come, or has not succeeded", holder).
		WithFix("nothing, if that pod is being deleted; else see why its DEL fails")
}

// inherit restores a VF from the journal of the sandbox that it was taken over
// from, last, nil for none. Of another boot nothing is left to be restored.
func (r *run) inherit(ctx context.Context, a *plan.Attachment, last *journal.Entry) error {
	if last == nil || !last.SameBoot() || !r.inv.Conf.RestoreDevices {
		return nil
	}
	i := slices.IndexFunc(last.Plan.Attachments, func(b plan.Attachment) bool {
		return b.Device != nil && b.Device.PCIAddress == a.Device.PCIAddress
	})
	if i < 0 {
		return nil
	}
	before, err := recordedDevice(last, i)
	if err != nil {
		return err
	}
	return r.restore(ctx, a, before)
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

// giveBack makes a VF stand as before ADD, and gives its claim back.
func (r *run) giveBack(ctx context.Context, i int) error {
	a := &r.entry.Plan.Attachments[i]
	if !isClaimed(a) {
		return nil
	}
	before, err := r.before(i)
	if err == nil && r.inv.Conf.RestoreDevices {
		err = r.restore(ctx, a, before)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	return r.Journal.Unclaim(ctx, a.Device.PCIAddress, keyOf(r.inv))
}
