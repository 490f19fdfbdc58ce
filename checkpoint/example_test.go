package checkpoint_test

import (
	"fmt"

	"github.com/manifold-cni/manifold/checkpoint"
)

func Example() {
	file, err := checkpoint.Encode([]checkpoint.Entry{{
		PodUID: "f0d3eb39", Container: "dpdk", Resource: "vendor.example/vfs",
		Devices: []checkpoint.NUMADevices{{Node: 1, IDs: []string{"0000:41:10.0"}}},
	}}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := checkpoint.Decode(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range c.Pod("f0d3eb39") {
		fmt.Println(e.Container, e.Resource, e.IDs(), "on node", e.Devices[0].Node)
	}
	// Output: dpdk vendor.example/vfs [0000:41:10.0] on node 1
}
