package reconcile

import (
	"context"
	"testing"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// A node without VFs, like most nodes, never asks the kubelet, however many pods come and
// go.
func TestNodeWithoutVFsAsksNothing(t *testing.T) {
	tree := sriovtest.New(t.TempDir())
	tree.AddFunction(sriovtest.Function{Address: pf})
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	r := &Reconciler{
		Journal: journal.Dir{Path: t.TempDir()}, Host: tree.Host(),
		Allocated: func(context.Context) (*Allocated, error) {
			t.Error("the kubelet was asked for devices")
			return nil, nil
		},
	}
	if found, err := r.Scan(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
}
