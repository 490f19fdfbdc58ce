package agent

import (
	"context"
	"log/slog"
	"time"
)

// taintPause is the pause between two checks whether a new node is ready.
const taintPause = 2 * time.Second

// untaint removes the startup taint, with which a new node's kubelet registers, as soon
// as every check holds, and returns. Without the taint, a pod could be scheduled to the
// node and run before the runtime calls Manifold, with the primary network alone.
func (a *Assembly) untaint(ctx context.Context, key string, log *slog.Logger) {
	for {
		ready := true
		for _, err := range a.ready(ctx) {
			ready = ready && err == nil
		}
		if ready {
			err := a.writer.RemoveTaint(ctx, key)
			if err == nil {
				return
			}
			log.Warn("startup taint", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(taintPause):
		}
	}
}
