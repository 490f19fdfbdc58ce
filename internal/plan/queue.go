package plan

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// queueTime is how long a process waits at most for its turn to plan without an agent:
// longer than many plans take, and short beside what a runtime gives a sandbox, since
// the one whose turn it is may wait for the kubelet.
const queueTime = 2 * time.Second

// queuePoll is how often it looks again. flock has no wait with a deadline.
const queuePoll = 10 * time.Millisecond

// queue returns once this process has locked the file at path, which makes it its turn;
// once waiting, which is called while it is another's, says that it need not have one;
// or once it has waited long enough, so that one that is stuck holds up nobody. A file
// that cannot be opened, or locked, has no queue. end ends the turn, as the end of the
// process would.
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
