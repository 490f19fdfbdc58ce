package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The effects of kernel changes at the wrong moment cannot be arranged from outside, so
// this test injects the errors.
func TestSettle(t *testing.T) {
	gone := &fs.PathError{Op: "open", Path: "numa_node", Err: syscall.ENOENT}
	removed := fmt.Errorf("attribute: %w", &fs.PathError{Op: "read", Path: "vendor", Err: syscall.ENODEV})
	other := errors.New("not a number")
	for _, c := range []struct {
		name   string
		errs   []error // of successive reads; the last one repeats
		reads  int
		absent bool
		want   error
	}{
		{"at once", []error{nil}, 1, false, nil},
		{"after a change", []error{gone, nil}, 2, false, nil},
		{"after two, one of them in an open file", []error{gone, removed, nil}, 3, false, nil},
		{"never there", []error{gone}, attempts, true, gone},
		{"removed again and again", []error{removed}, attempts, true, syscall.ENODEV},
		{"wrong", []error{other}, 1, false, other},
		{"a change, then wrong", []error{gone, other}, 2, false, other},
	} {
		t.Run(c.name, func(t *testing.T) {
			reads := 0
			err := settle(func() error {
				reads++
				return c.errs[min(reads, len(c.errs))-1]
			})
			if reads != c.reads || !errors.Is(err, c.want) || errors.Is(err, fs.ErrNotExist) != c.absent {
				t.Errorf("%d reads, %v; want %d, %v, absent %t", reads, err, c.reads, c.want, c.absent)
			}
		})
	}
}

func TestUnchanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "0000:21:10.0")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unchanged(dir, before); err != nil {
		t.Errorf("still the same: %v", err)
	}
	// Moved aside rather than deleted, so that the new one cannot get its inode number.
	if err := errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unchanged(dir, before); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("replaced: %v, want ErrNotExist", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := unchanged(dir, before); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v, want ErrNotExist", err)
	}
}
