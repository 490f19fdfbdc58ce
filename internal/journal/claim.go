package journal

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Claims say which sandbox a device serves: one file per device in the directory
// "devices", which holds the journal's key. ADD and DEL take the claim before the
// delegate runs, and DEL gives it back when it is done with the device. A claim
// decides nothing alone: a claim whose journal is gone is void, and the journals tell
// who holds the device when the claim cannot be read. Claims exist for the late DEL:
// by then the device may already serve another sandbox, or be about to.

// claimsDir is the directory of claims inside the journal directory.
const claimsDir = "devices"

// maxClaim is the largest claim file that is read, in bytes.
const maxClaim = 4096

// RepairKey is the key of whoever repairs a device. It is no sandbox: it has no
// journal, only a lock that is held during the repair.
func RepairKey(device string) Key { return Key{ContainerID: "reconcile", IfName: device} }

// IsRepairLock reports whether name is the name of a repair's lock file in a journal
// directory.
func IsRepairLock(name string) bool {
	stem, ok := strings.CutSuffix(name, lockSuffix)
	k, isKey := ParseKey(stem)
	return ok && isKey && k == RepairKey(k.IfName)
}

// Claim makes k the holder of a device, given by its PCI address, and returns k. When
// another sandbox holds the claim and held confirms that it still has the device,
// Claim returns that holder instead. A claim that k already holds is not written
// again. The error is of kind [cnierr.JournalCorrupt] when the claim cannot be read
// and neither can a journal that may be the holder's.
func (d Dir) Claim(ctx context.Context, device string, k Key, held func(Key) (bool, error)) (holder Key, err error) {
	err = d.withClaim(ctx, device, os.O_CREATE|os.O_RDWR, func(f *os.File) error {
		claimed, sound := readClaim(f)
		if claimed == k {
			holder = k
			return nil
		}
		if !sound {
			var err error
			if claimed, err = d.user(device, k); err != nil {
				return cnierr.New("claim device", cnierr.KindOf(err), "its claim %s cannot be read, and neither can a journal that may name its holder: %w", f.Name(), err)
			}
		}
		if claimed != (Key{}) {
			if still, err := held(claimed); err != nil || still {
				holder = claimed
				return err
			}
		}
		holder = k
		if err := f.Truncate(0); err != nil {
			return err
		}
		_, err := f.WriteAt([]byte(k.String()+"\n"), 0)
		return err
	})
	return holder, err
}

// user returns the sandbox, other than k, whose journal says that it has the device.
// Of several it is the one that tried the device last; it is the zero Key when there
// is none. An unreadable journal is an error, since it may be the holder's.
func (d Dir) user(device string, k Key) (user Key, err error) {
	var last time.Time
	err = d.others(k, anyKey, func(other Key, e *Entry, err error) error {
		if err != nil {
			return err
		}
		if tried := e.tried(device); tried.After(last) {
			user, last = other, tried
		}
		return nil
	})
	if err != nil {
		return Key{}, err
	}
	return user, nil
}

// others visits the journals of the sandboxes except k that which accepts, each with the
// error from reading it, until a visit fails.
func (d Dir) others(k Key, which func(Key) bool, visit func(other Key, e *Entry, err error) error) error {
	keys, err := d.List()
	if err != nil {
		return err
	}
	for _, other := range keys {
		if other == k || !which(other) {
			continue
		}
		e, err := d.Open(other)
		if errors.Is(err, os.ErrNotExist) {
			continue // released in the meantime
		}
		if err := visit(other, e, err); err != nil {
			return err
		}
	}
	return nil
}

// Siblings visits the journals of the other interfaces that the runtime gave to the
// container of k, each with the error from reading it.
func (d Dir) Siblings(k Key, visit func(other Key, e *Entry, err error)) error {
	return d.others(k, func(other Key) bool { return other.ContainerID == k.ContainerID }, func(other Key, e *Entry, err error) error {
		visit(other, e, err)
		return nil
	})
}

// anyKey is the filter of [Dir.others] that accepts every sandbox.
func anyKey(Key) bool { return true }

// Had returns the attachment through which another sandbox of this boot has or had
// the device with this ID (and with this resource, if device names one), provided
// that its PCI function is known. Of several it is the one begun last; it is nil when
// there is none. The netdev or device that the ID names may have left the host, and
// then only such a journal tells which PCI function it was. When no readable journal
// answers, the unreadable journal of a sandbox that holds a claim is an error, since
// it may be the right one. A sandbox without a claim has no VF.
func (d Dir) Had(ctx context.Context, k Key, device *plan.Device) (*plan.Attachment, error) {
	var out *plan.Attachment
	var begun time.Time
	var unread error
	err := d.others(k, anyKey, func(other Key, e *Entry, err error) error {
		if err != nil {
			may, err2 := d.mayHave(ctx, other)
			if may || err2 != nil {
				unread = errors.Join(unread, err, err2)
			}
		} else if a := e.had(device); a != nil && e.Created.After(begun) {
			out, begun = a, e.Created
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if out != nil {
		return out, nil
	}
	return nil, unread
}

// had returns the unreleased attachment of the device with this ID whose PCI function
// is known. It returns nil when there is none or when the journal is of another boot.
func (e *Entry) had(device *plan.Device) *plan.Attachment {
	if !e.SameBoot() {
		return nil
	}
	for _, i := range e.Unreleased() {
		a := &e.Plan.Attachments[i]
		if on := a.Device; on != nil && on.PCIAddress != "" && on.ID == device.ID && (device.Resource == "" || on.Resource == device.Resource) {
			return a
		}
	}
	return nil
}

// tried returns when the sandbox last tried to attach the device. It is the zero time
// when the sandbox never had the device or has given it back.
func (e *Entry) tried(device string) (last time.Time) {
	for _, i := range e.Unreleased() {
		if on := e.Plan.Attachments[i].Device; on == nil || on.PCIAddress != device {
			continue
		}
		for _, s := range e.Steps {
			if s.Attachment == i && s.Phase == Trying && s.Time.After(last) {
				last = s.Time
			}
		}
	}
	return last
}

// Claimed returns the devices that k holds, ordered by PCI address.
func (d Dir) Claimed(ctx context.Context, k Key) ([]string, error) {
	var out []string
	err := d.claims(ctx, func(device string, holder Key, _ bool) {
		if holder == k {
			out = append(out, device)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// mayHave reports whether k holds a device, or whether an unreadable claim may be
// k's.
func (d Dir) mayHave(ctx context.Context, k Key) (may bool, err error) {
	err = d.claims(ctx, func(_ string, holder Key, sound bool) { may = may || !sound || holder == k })
	return may, err
}

// claims visits all claims with what readClaim returns for each.
func (d Dir) claims(ctx context.Context, visit func(device string, holder Key, sound bool)) error {
	files, err := os.ReadDir(filepath.Join(d.Path, claimsDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return ioError("list claims", err)
	}
	for _, f := range files {
		err := d.withClaim(ctx, f.Name(), os.O_RDWR, func(file *os.File) error {
			holder, sound := readClaim(file)
			visit(f.Name(), holder, sound)
			return nil
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Holder returns who claimed a device last. It is the zero Key when nobody did and
// when the claim cannot be read.
func (d Dir) Holder(ctx context.Context, device string) (holder Key, err error) {
	err = d.withClaim(ctx, device, os.O_RDWR, func(f *os.File) error {
		holder, _ = readClaim(f)
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return Key{}, nil
	}
	return holder, err
}

// Unclaim gives back a device that k holds. It leaves a claim of another alone.
func (d Dir) Unclaim(ctx context.Context, device string, k Key) error {
	err := d.withClaim(ctx, device, os.O_RDWR, func(f *os.File) error {
		if holder, _ := readClaim(f); holder != k {
			return nil
		}
		return f.Truncate(0) // the file stays: removing it would race with its flock
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// withClaim runs do on the device's claim file, opened with flags and locked.
func (d Dir) withClaim(ctx context.Context, device string, flags int, do func(*os.File) error) error {
	const op = "claim device"
	path, err := d.deviceFile(op, claimsDir, device)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) && flags&os.O_CREATE != 0 { // the node's first claim
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return ioError(op, err)
		}
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return ioError(op, err)
	}
	defer f.Close() // which unlocks
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return ioError(op, err)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return cnierr.New(op, cnierr.Busy, "%s: %w", device, context.Cause(ctx)).WithFix("the runtime will try again")
		}
	}
	if err := do(f); err != nil {
		var typed *cnierr.Error
		if errors.As(err, &typed) {
			return err // already has its operation
		}
		return ioError(op, err)
	}
	return nil
}

// readClaim returns the key in a claim file, the zero Key when the file is empty, and
// whether the file can be read. After a power failure it may hold anything.
func readClaim(f *os.File) (k Key, sound bool) {
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, maxClaim))
	if err == nil && len(raw) == 0 {
		return Key{}, true
	}
	text, whole := strings.CutSuffix(string(raw), "\n")
	k, ok := ParseKey(text)
	if err != nil || !whole || !ok {
		return Key{}, false
	}
	return k, true
}
