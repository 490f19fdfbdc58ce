package sriov_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// vfioVF is bound to vfio-pci, in a tree of AddICE.
const vfioVF = "0000:18:01.1"

func TestVFIONode(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, root string)
		path   string // expected path
		wrong  string // or what is found instead
	}{
		"its group's": {func(*testing.T, string) {}, "/dev/vfio/83", ""},
		"without an IOMMU": {func(t *testing.T, root string) {
			for _, dir := range []string{"dev/vfio", "sys/class/vfio"} {
				move(t, root, dir+"/83", dir+"/noiommu-83")
			}
		}, "/dev/vfio/noiommu-83", ""},
		"its own": {func(t *testing.T, root string) {
			move(t, root, "sys/class/vfio/83", "sys/bus/pci/devices/"+vfioVF+"/vfio-dev/vfio3")
			move(t, root, "dev/vfio/83", "dev/vfio/devices/vfio3")
		}, "/dev/vfio/devices/vfio3", ""},
		"none": {func(t *testing.T, root string) { move(t, root, "dev/vfio/83", "dev/other") }, "", "/dev/vfio/83: found none"},
		"a file": {func(t *testing.T, root string) {
			move(t, root, "dev/vfio/83", "dev/other")
			write(t, root, "dev/vfio/83")
		}, "", "/dev/vfio/83: found something other than a character device"},
		"a directory": {func(t *testing.T, root string) {
			move(t, root, "dev/vfio/83", "dev/other")
			move(t, root, "dev/other", "dev/vfio/83/node")
		}, "", "/dev/vfio/83: found something other than a character device"},
		"another device": {func(t *testing.T, root string) {
			move(t, root, "dev/vfio/83", "dev/other")
			if err := os.Symlink("/dev/zero", filepath.Join(root, "dev/vfio/83")); err != nil {
				t.Fatal(err)
			}
		}, "", "/dev/vfio/83: found character device 1:5, not 1:3"},
		"a device that VFIO has not": {func(t *testing.T, root string) { move(t, root, "sys/class/vfio/83", "other") }, "", "unknown to VFIO"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := build(t, (*sriovtest.Tree).AddICE)
			tc.change(t, tree.Root())
			f := must(tree.FS().Function(vfioVF))(t)
			path, err := tree.FS().VFIONode(*f)
			var wrong *sriov.NodeError
			if path != tc.path || errors.As(err, &wrong) != (tc.wrong != "") || err != nil && (!strings.Contains(err.Error(), tc.wrong) || !strings.Contains(err.Error(), vfioVF)) {
				t.Errorf("%q, %v; want %q, %q", path, err, tc.path, tc.wrong)
			}
		})
	}
}

// move moves a file of a tree and creates the parent directories.
func move(t *testing.T, root, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, from), filepath.Join(root, to)); err != nil {
		t.Fatal(err)
	}
}

// write creates an empty file in a tree.
func write(t *testing.T, root, path string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
