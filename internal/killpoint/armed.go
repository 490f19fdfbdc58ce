//go:build killpoints

package killpoint

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
)

var (
	mu    sync.Mutex
	count int
)

// Here marks a point: it logs the name, and kills the process if it is this point's turn.
func Here(name string) {
	mu.Lock()
	defer mu.Unlock()
	count++
	if path := os.Getenv("MANIFOLD_KILL_LOG"); path != "" {
		if f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err == nil {
			fmt.Fprintln(f, name)
			f.Close()
		}
	}
	at, err := strconv.Atoi(os.Getenv("MANIFOLD_KILL_AT"))
	if err != nil || at != count {
		return
	}
	pid := os.Getpid()
	if os.Getenv("MANIFOLD_KILL_GROUP") != "" {
		pid = 0
	}
	syscall.Kill(pid, syscall.SIGKILL)
	select {} // the signal is on its way
}
