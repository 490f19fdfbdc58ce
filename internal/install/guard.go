package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// renamers maps the suffix that another plugin gives to configurations which it hides
// from the runtime to the plugin's name and the setting that prevents it.
var renamers = map[string]string{
	".cilium_bak": "Cilium did: set cni.exclusive to false in its configuration",
}

// Guard keeps Manifold's configuration where the runtime finds it. Without the
// configuration, the runtime calls the primary network alone, and pods that ask for
// more start without it as if nothing were wrong. Guard therefore restores at once what
// another plugin renames, removes or overwrites, and reports it.
type Guard struct {
	conf  string // path of the configuration
	log   *slog.Logger
	event func(ctx context.Context, reason, message string)
	every time.Duration // interval of checks without a notification

	saying sync.WaitGroup // events being written: a slow API server delays no repair

	mu     sync.Mutex
	looked bool  // at least once
	last   error // what is wrong now
}

// NewGuard returns the guard of the configuration conf. event reports changes to
// people.
func NewGuard(conf string, event func(ctx context.Context, reason, message string), log *slog.Logger) *Guard {
	return &Guard{conf: conf, event: event, log: log, every: files.LookEvery}
}

// guardPause is the pause after restoring the configuration, so that a contest with a
// persistent plugin does not keep a core busy. It doubles up to guardMaxPause while the
// contest lasts.
const (
	guardPause    = 100 * time.Millisecond
	guardMaxPause = 10 * time.Second
)

// Run guards the configuration until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	defer g.saying.Wait()
	w := files.Watch(filepath.Dir(g.conf), g.every)
	defer w.Close()
	if err := w.Err(); err != nil {
		g.log.Warn("cannot watch the CNI configuration; checking it at intervals instead", "file", g.conf, "every", g.every.String(), "err", err)
	}
	pause := guardPause
	for {
		if restored := g.look(ctx); restored {
			pause = min(pause*2, guardMaxPause)
		} else {
			pause = guardPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if !w.Await(ctx) {
			return
		}
	}
}

// look checks once, restores the configuration if necessary, and reports changes.
func (g *Guard) look(ctx context.Context) (restored bool) {
	what, err := g.restore()
	if err == nil {
		err = g.first()
	}
	g.mu.Lock()
	changed := what != "" || (err != nil) != (g.last != nil)
	g.looked, g.last = true, err
	g.mu.Unlock()
	if !changed {
		return false
	}
	reason, message := agent.ReasonRestored, what
	if err != nil {
		reason, message = agent.ReasonLost, strings.TrimPrefix(what+"; "+err.Error(), "; ")
	}
	if message == "" {
		g.log.Info("the runtime finds the CNI configuration again", "file", g.conf)
		return false
	}
	g.log.Warn("CNI configuration", "file", g.conf, "reason", reason, "found", message)
	g.saying.Go(func() { g.event(ctx, reason, message) })
	return what != ""
}

// Ready returns what keeps the runtime from calling Manifold.
func (g *Guard) Ready(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.looked {
		return fmt.Errorf("%s has not been checked yet", g.conf)
	}
	return g.last
}

// restore restores the configuration from its copy if necessary. It returns what had
// happened to the configuration, in words, or "".
func (g *Guard) restore() (what string, err error) {
	unlock, err := netconf.Lock(g.conf)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // nothing is installed
	}
	if err != nil {
		return "", err
	}
	defer unlock()
	kept, err := os.ReadFile(netconf.Kept(g.conf))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	have, err := files.ReadRegular(g.conf)
	switch {
	case err == nil && bytes.Equal(have, kept):
		return "", nil
	case err == nil && isOurs(have):
		// An administrator's edit counts: it becomes the copy.
		return "", files.ReplaceLocked(netconf.Kept(g.conf), have)
	case err == nil:
		what = "was overwritten with another plugin's configuration"
	case errors.Is(err, os.ErrNotExist):
		what = g.culprit(kept)
	default:
		return "", err
	}
	what = fmt.Sprintf("%s %s; it has been restored", g.conf, what)
	return what, files.ReplaceLocked(g.conf, kept)
}

// isOurs reports whether install could have written a configuration.
func isOurs(raw []byte) bool {
	var list struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if json.Unmarshal(raw, &list) != nil || len(list.Plugins) != 1 || list.Plugins[0]["type"] != "manifold" {
		return false
	}
	return netconf.Validate(list.Plugins[0]) == nil
}

// culprit says what happened to the missing configuration. A file that was renamed is
// still there under its new name, and the suffix tells some culprits.
func (g *Guard) culprit(kept []byte) string {
	entries, err := os.ReadDir(filepath.Dir(g.conf))
	if err != nil {
		return "was removed"
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(g.conf)) || !e.Type().IsRegular() {
			continue
		}
		if raw, err := os.ReadFile(filepath.Join(filepath.Dir(g.conf), e.Name())); err != nil || !bytes.Equal(raw, kept) {
			continue
		}
		what := "was renamed to " + e.Name()
		if who := renamers[filepath.Ext(e.Name())]; who != "" {
			what += " (" + who + ")"
		}
		return what
	}
	return "was removed"
}

// first returns nil when the runtime uses Manifold's configuration. It ignores that the
// file itself may have been removed since [Guard.restore]: the next look finds that.
func (g *Guard) first() error {
	if !files.Exists(netconf.Kept(g.conf)) {
		return nil
	}
	return preferred(g.conf)
}

// preferred returns an error if the runtime uses another configuration than Manifold's,
// the file conf, because conf is not the first by name in its directory.
func preferred(conf string) error {
	file, _ := netconf.First(filepath.Dir(conf))
	if file == nil || filepath.Base(file.Path) >= filepath.Base(conf) {
		return nil
	}
	return fmt.Errorf("the runtime uses %s, whose name sorts before %s: pods get that network alone; rename one of them", file.Path, filepath.Base(conf))
}
