package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// hungTime is how long a call may take to return after its context has ended. Whatever
// waits for the API server or the kubelet returns at once then, so a call that takes this
// long waits for something that never comes, such as a lock that nobody releases.
const hungTime = 2 * time.Minute

// calls tells which plans, reports and STATUS calls do not return although their time is
// over. The socket still answers a ping then, so only liveness can have the kubelet
// restart the agent. A slow call is not late: its context has not ended yet.
type calls struct {
	log *slog.Logger

	mu   sync.Mutex
	late map[*call]time.Time // when the context of a call that has not returned ended
}

// call is a call under way. The mutex of calls guards done and told.
type call struct {
	name       string
	done, told bool
}

// newCalls returns calls that logs those that hang.
func newCalls(log *slog.Logger) *calls { return &calls{log: log, late: map[*call]time.Time{}} }

// begin counts a call until the returned function is called. A nil receiver counts none.
func (c *calls) begin(ctx context.Context, name string) (end func()) {
	if c == nil {
		return func() {}
	}
	under := &call{name: name}
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !under.done {
			c.late[under] = time.Now()
		}
	})
	return func() {
		if stop() {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		under.done = true
		delete(c.late, under)
	}
}

// hung returns an error if a call has not returned hungTime after its context ended. It
// logs each such call once, because the kubelet's Event does not say why a probe failed.
func (c *calls) hung() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for under, since := range c.late {
		took := time.Since(since)
		if took < hungTime {
			continue
		}
		err = fmt.Errorf("a call has not returned %s after its time was over: %s", took.Round(time.Second), under.name)
		if !under.told {
			under.told = true
			c.log.Error("a call hangs; this agent must be restarted", "call", under.name, "err", err)
		}
	}
	return err
}
