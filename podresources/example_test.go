package podresources_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/podresources"
)

func ExampleReader() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "kubelet_internal_checkpoint")
	raw, err := checkpoint.Encode([]checkpoint.Entry{{
		PodUID: "f0d3eb39", Container: "rx", Resource: "vendor.example/vfs", Devices: []checkpoint.NUMADevices{{Node: 0, IDs: []string{"0000:21:10.4"}}},
	}}, nil)
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	// No PodResources API here: the checkpoint alone suffices.
	reader := podresources.NewReader(nil, checkpoint.NewFile(file), podresources.Options{})
	allocation, err := reader.Devices(context.Background(), podresources.Pod{
		Namespace: "shop", Name: "gateway", UID: "f0d3eb39", Containers: []podresources.Container{{Name: "rx"}},
	}, []string{"vendor.example/vfs"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range allocation.Devices {
		fmt.Println(d.Resource, d.ID, d.Containers, d.Source)
	}
	// Output: vendor.example/vfs 0000:21:10.4 [rx] checkpoint
}
