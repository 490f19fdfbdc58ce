package journal

import (
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// withRoom runs f while no file can grow beyond size bytes, as on a full disk: a write
// that does not fit is cut short.
func withRoom(t *testing.T, size int64, f func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var all unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &all); err != nil {
		t.Fatal(err)
	}
	few := all
	few.Cur = uint64(size)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &all); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// A step that does not fit on a full disk damages no step after it, however often that
// happens.
func TestStepsThatDoNotFit(t *testing.T) {
	d, e := begun(t, 1)
	phases := []Phase{Trying, Attached, Releasing}
	for _, p := range phases {
		fi, err := d.Stat(key)
		if err != nil {
			t.Fatal(err)
		}
		withRoom(t, fi.Size()+20, func() {
			if err := e.Append(Step{Phase: Verified}); err == nil {
				t.Fatal("a step was appended without room for it")
			}
		})
		appendAll(t, e, Step{Phase: p})
	}
	got, err := d.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Steps) != len(phases) || len(e.Steps) != len(phases) || got.Torn {
		t.Errorf("read %+v", got.Steps)
	}
}
