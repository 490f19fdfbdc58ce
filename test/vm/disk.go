package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// DiskSize is the size of a disk that [Boot] makes, in MiB. The file takes as
// much room as was written to it.
const DiskSize = 4096

// makeDisk makes a disk image with an empty file system, where there is none. It
// needs mke2fs, of the package e2fsprogs.
func makeDisk(ctx context.Context, file string) error {
	if _, err := os.Stat(file); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	name, err := exec.LookPath("mke2fs")
	if err != nil {
		name = "/usr/sbin/mke2fs" // not in everybody's path
	}
	// Under another name until it is complete.
	if _, err := output(exec.CommandContext(ctx, name, "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", file+".new", fmt.Sprintf("%dM", DiskSize))); err != nil {
		return fmt.Errorf("make a disk: %w", err)
	}
	return os.Rename(file+".new", file)
}
