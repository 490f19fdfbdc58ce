package rtnl_test

import (
	"fmt"

	"github.com/manifold-cni/manifold/sriov/rtnl"
)

// A socket sends its requests in the network namespace in which it was opened, wherever
// it is used.
func Example() {
	socket, err := rtnl.Open()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer socket.Close()
	for _, name := range []string{"lo", "nosuchdevice7"} {
		link, err := socket.Link(name)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(name, "is there:", link != nil)
	}
	// Output:
	// lo is there: true
	// nosuchdevice7 is there: false
}
