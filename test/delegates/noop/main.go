// Command noop is a delegate that does nothing, as fast as a program can: the
// benchmarks' delegate, so that what they measure is everybody else.
package main

import "os"

func main() {
	if os.Getenv("CNI_COMMAND") == "ADD" {
		// One write; a failed one shows as a garbled result in the caller.
		_, _ = os.Stdout.WriteString(`{"cniVersion":"1.0.0","ips":[]}`)
	}
}
