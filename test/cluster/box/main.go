// Command box is the only program in the containers of a lab's pods: it runs until it
// gets a signal. With the argument "done" it exits at once, as an ordinary init
// container does; with "stubborn" it ignores signals until it is killed.
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
