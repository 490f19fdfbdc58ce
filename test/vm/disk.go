package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DiskSize is the size in MiB of a disk that [Boot] creates. The file is sparse.
const DiskSize = 4096

// makeDisk creates the disk's file unless it exists: with an empty file system, or with
// the guest's files. It needs mke2fs from the package e2fsprogs.
func (c *Config) makeDisk(ctx context.Context, s *Software) (err error) {
	if _, err := os.Stat(c.Disk); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	name, err := exec.LookPath("mke2fs")
	if err != nil {
		name = "/usr/sbin/mke2fs" // not in every user's PATH
	}
	args := []string{"-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1"}
	if c.Root {
		tree := c.Disk + ".root"
		defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
		if err := c.stage(tree, s); err != nil {
			return err
		}
		args = append(args, "-d", tree)
	}
	// Created under another name so that an incomplete disk is never used.
	if _, err := output(exec.CommandContext(ctx, name, append(args, c.Disk+".new", fmt.Sprintf("%dM", DiskSize))...)); err != nil {
		return fmt.Errorf("create a disk: %w", err)
	}
	return os.Rename(c.Disk+".new", c.Disk)
}

// stage collects the root file system's files in a directory.
func (c *Config) stage(tree string, s *Software) error {
	for _, dir := range directories {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{"/bin/busybox": s.busybox()}
	for to, from := range c.Files {
		files[to] = from
	}
	for to, from := range files {
		if err := stageFile(filepath.Join(tree, to), from); err != nil {
			return err
		}
	}
	return nil
}

// stageFile copies a file, or a directory with its contents except files whose names
// begin with a dot.
func stageFile(to, from string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		target := filepath.Join(to, strings.TrimPrefix(file, from))
		switch {
		case err != nil:
			return err
		case file != from && strings.HasPrefix(d.Name(), "."):
			return nil
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		}
		return copyFile(target, file)
	})
}

// copyFile copies a file, following links, and makes the copy executable.
func copyFile(to, from string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
