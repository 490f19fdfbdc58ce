package plan

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// queueTime is how long a process waits at most for its turn to plan without an agent.
// It is longer than many plans take, and short compared with what a runtime allows for
// a sandbox, because the process whose turn it is may be waiting for the kubelet.
const queueTime = 2 * time.Second

// queuePoll is how often queue retries, because flock cannot wait with a deadline.
const queuePoll = 10 * time.Millisecond

// queue waits until it is this process's turn, that is, until it has locked the file at
// path. It returns early when waiting, which it calls while another has the turn, says
// that no turn is needed any more. It also returns after queueTime, so that a stuck
// process holds up nobody. Without a file that can be opened and locked there is no
// queue. end ends the turn, as the exit of the process would.
func queue(ctx context.Context, path string, waiting func() bool) (end func()) {
	f, err := os.Open(path)
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, queueTime)
	defer cancel()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
		select {
		case <-ctx.Done():
		case <-time.After(queuePoll):
			if waiting() {
				continue
			}
		}
		break
	}
	return func() { _ = f.Close() } // nothing was written
}
