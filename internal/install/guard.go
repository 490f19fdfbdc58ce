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

// renamers are the endings that other plugins give to configurations which they
// take out of the runtime's sight, and what keeps them from it.
var renamers = map[string]string{
	".cilium_bak": "Cilium did: set cni.exclusive to false in its configuration",
}

// Guard keeps Manifold's configuration where the runtime finds it. Without it the
// runtime calls the primary network alone, and pods that ask for more start
// without, as if nothing were wrong: so what another plugin renames, removes or
// overwrites is put back at once, and said.
type Guard struct {
	conf  string // path of the configuration
	log   *slog.Logger
	event func(ctx context.Context, reason, message string)
	every time.Duration // between two looks while nothing tells of a change

	saying sync.WaitGroup // events under way: an API server that is slow delays no repair

	mu     sync.Mutex
	looked bool  // at least once
	last   error // what is wrong now
}

// NewGuard returns the guard of the configuration conf. event tells people what became
// of it.
func NewGuard(conf string, event func(ctx context.Context, reason, message string), log *slog.Logger) *Guard {
	return &Guard{conf: conf, event: event, log: log, every: files.LookEvery}
}

// guardPause is the wait after the configuration was put back, so that another
// that insists is no reason to keep a core busy; doubled up to guardMaxPause as
// long as it does.
const (
	guardPause    = 100 * time.Millisecond
	guardMaxPause = 10 * time.Second
)

// Run watches until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	defer g.saying.Wait()
	w := files.Watch(filepath.Dir(g.conf), g.every)
	defer w.Close()
	if err := w.Err(); err != nil {
		g.log.Warn("the CNI configuration is not watched, and only looked at now and then", "file", g.conf, "every", g.every.String(), "err", err)
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

// look compares once, puts the configuration back where it is wrong, and says so.
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
		return fmt.Errorf("%s is not looked at yet", g.conf)
	}
	return g.last
}

// restore puts the configuration back where the copy says that it must be, and
// returns in words what had been done to it, or nothing.
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
	have, err := os.ReadFile(g.conf)
	switch {
	case err == nil && bytes.Equal(have, kept):
		return "", nil
	case err == nil && isOurs(have):
		// An administrator's edit: what is meant is what is there.
		return "", files.ReplaceLocked(netconf.Kept(g.conf), have)
	case err == nil:
		what = "was overwritten by another plugin's"
	case errors.Is(err, os.ErrNotExist):
		what = g.culprit(kept)
	default:
		return "", err
	}
	what = fmt.Sprintf("%s %s, and is put back", g.conf, what)
	return what, files.ReplaceLocked(g.conf, kept)
}

// isOurs reports whether a configuration is one that install could have written.
func isOurs(raw []byte) bool {
	var list struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if json.Unmarshal(raw, &list) != nil || len(list.Plugins) != 1 || list.Plugins[0]["type"] != "manifold" {
		return false
	}
	return netconf.Validate(list.Plugins[0]) == nil
}

// culprit says what became of the configuration, which is absent: who renames a
// file leaves it under its new name, and some are known by that.
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

// first returns nil when the runtime takes Manifold's configuration: of all in the
// directory the first by name. That it is not there itself, taken away since
// [Guard.restore] saw it, is for the next look.
func (g *Guard) first() error {
	if !files.Exists(netconf.Kept(g.conf)) {
		return nil
	}
	file, _ := netconf.First(filepath.Dir(g.conf))
	if file == nil || filepath.Base(file.Path) >= filepath.Base(g.conf) {
		return nil
	}
	return fmt.Errorf("the runtime takes %s, whose name comes before %s: pods get that network alone; rename one of them", file.Path, filepath.Base(g.conf))
}
