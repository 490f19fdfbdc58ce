// Command box is all that runs in the containers of a lab's pods: it waits for a
// signal to end. With the argument "done" it ends at once, as an ordinary init
// container does; with "stubborn" it does not end until it is killed.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	how := ""
	if len(os.Args) > 1 {
		how = os.Args[1]
	}
	if how == "done" {
		return
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	for range end {
		if how != "stubborn" {
			return
		}
	}
}
