package journal

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// locked returns a journal directory in which the lock of key is held.
func locked(t *testing.T) (Dir, *Lock) {
	t.Helper()
	d := Dir{t.TempDir()}
	l, err := d.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return d, l
}

// heir starts a process that inherits the lock, as delegates do, and runs longer than
// any test.
func heir(t *testing.T, l *Lock) *exec.Cmd {
	t.Helper()
	child := exec.Command("sleep", "600")
	child.ExtraFiles = []*os.File{l.File()}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	return child
}

func TestLockIsExclusiveAndGoesWithItsFile(t *testing.T) {
	d, l := locked(t)
	if other, err := d.TryLock(key); other != nil || err != nil {
		t.Fatalf("a second lock: %v %v", other, err)
	}
	if keys, err := d.Locked(); err != nil || !slices.Equal(keys, []Key{key}) {
		t.Errorf("locked: %v %v", keys, err)
	}
	got := make(chan error, 1)
	go func() {
		l, err := d.Lock(context.Background(), key)
		if err == nil {
			err = l.Unlock(true)
		}
		got <- err
	}()
	if err := l.Unlock(true); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(d.Path); err != nil || len(names) != 0 {
		t.Errorf("left: %v %v", names, err)
	}
}

func TestLockOutlivesItsOwnerInAChild(t *testing.T) {
	d, l := locked(t)
	child := heir(t, l)
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	// The owner dies: its descriptor is closed without unlocking.
	if err := l.File().Close(); err != nil {
		t.Fatal(err)
	}
	if other, err := d.TryLock(key); other != nil || err != nil {
		t.Fatalf("the child does not hold the lock: %v %v", other, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	again, err := d.Lock(ctx, key) // after the deadline the orphan is killed
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the orphan exited by itself")
	}
	if err := again.Unlock(false); err != nil {
		t.Error(err)
	}
}

func TestALiveOwnerIsNotEnded(t *testing.T) {
	d, l := locked(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Lock(ctx, key); !cnierr.Is(err, cnierr.Busy) {
		t.Errorf("waiting for a live owner: %v", err)
	}
	if err := l.Unlock(true); err != nil {
		t.Error(err)
	}
}

func TestUnlockTakesTheLockFromHeirs(t *testing.T) {
	d, l := locked(t)
	child := heir(t, l)
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	if err := l.Unlock(false); err != nil {
		t.Fatal(err)
	}
	other, err := d.TryLock(key)
	if err != nil || other == nil {
		t.Fatalf("a daemon left by a delegate holds the lock: %v", err)
	}
	if err := other.Unlock(true); err != nil {
		t.Error(err)
	}
}
