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
)

// Claims say which sandbox a device serves: one file per device in the directory
// "devices", which holds the journal's key. A claim is taken before the delegate
// runs and given back when its DEL has succeeded. It decides nothing alone: a
// claim whose journal is gone is void. What it is for is the DEL that comes
// late, when the device serves another sandbox already.

// maxClaim bounds a claim's file, in bytes.
const maxClaim = 4096

// RepairKey is the key of whoever repairs a device, which is no sandbox: it has no
// journal, and holds its lock while it works.
func RepairKey(device string) Key { return Key{ContainerID: "reconcile", IfName: device} }

// IsRepairLock reports whether the file of that name in a journal directory is the
// lock of whoever repairs a device.
func IsRepairLock(name string) bool {
	stem, ok := strings.CutSuffix(name, lockSuffix)
	k, isKey := ParseKey(stem)
	return ok && isKey && k == RepairKey(k.IfName)
}

// Claim makes k the holder of a device, named by its PCI address, and returns k;
// or returns the present holder, when that is another one of which held says
// that it still has the device.
func (d Dir) Claim(ctx context.Context, device string, k Key, held func(Key) (bool, error)) (holder Key, err error) {
	err = d.withClaim(ctx, device, os.O_CREATE|os.O_RDWR, func(f *os.File) error {
		holder = readClaim(f)
		if holder != k && holder != (Key{}) {
			if still, err := held(holder); err != nil || still {
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

// Holder returns who claimed a device last, the zero Key for nobody.
func (d Dir) Holder(ctx context.Context, device string) (holder Key, err error) {
	err = d.withClaim(ctx, device, os.O_RDWR, func(f *os.File) error {
		holder = readClaim(f)
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return Key{}, nil
	}
	return holder, err
}

// Unclaim gives a device back that k holds; another's claim is left alone.
func (d Dir) Unclaim(ctx context.Context, device string, k Key) error {
	err := d.withClaim(ctx, device, os.O_RDWR, func(f *os.File) error {
		if readClaim(f) != k {
			return nil
		}
		return f.Truncate(0) // the file stays: removing it would race with its lock
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// withClaim runs do on a device's locked file.
func (d Dir) withClaim(ctx context.Context, device string, flags int, do func(*os.File) error) error {
	const op = "claim device"
	path, err := d.deviceFile(op, "devices", device)
	if err != nil {
		return err
	}
	if flags&os.O_CREATE != 0 {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return ioError(op, err)
		}
	}
	f, err := os.OpenFile(path, flags, 0o600)
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
		return ioError(op, err)
	}
	return nil
}

// readClaim returns the key in a claim's file, the zero Key for none or a torn
// one.
func readClaim(f *os.File) Key {
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, maxClaim))
	text, whole := strings.CutSuffix(string(raw), "\n")
	k, ok := ParseKey(text)
	if err != nil || !whole || !ok {
		return Key{}
	}
	return k
}
