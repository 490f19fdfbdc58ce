package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/manifold-cni/manifold/test/sriovlab/checks"
	"github.com/manifold-cni/manifold/test/vm"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// guest is one of the lab's virtual machines.
type guest struct {
	*lab
	number  int
	several bool // one of several, so its output lines need its number
	config  vm.Config
	machine *vm.Machine // nil before boot
	counts  counter
	hung    []string // what ran when the guest stopped answering

	replaced bool // thrown away once already
}

// guest adds a guest that is not booted yet.
func (l *lab) guest() (*guest, error) {
	g := &guest{lab: l, number: len(l.guests) + 1}
	dir := filepath.Join(l.dir, fmt.Sprint(g.number))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	g.config = vm.Config{Dir: dir, PFs: 2, IOMMU: true, Modules: modules, Files: l.files, Disk: filepath.Join(dir, "disk")}
	l.guests = append(l.guests, g)
	return g, nil
}

// boot boots the guest, see [boots].
func (g *guest) boot(ctx context.Context) error {
	for try := 1; ; try++ {
		err := g.bootOnce(ctx)
		if err == nil || ctx.Err() != nil || try == boots {
			return err
		}
		g.tell("%v; its console ends:\n%s", err, g.console())
		g.hung = append(g.hung, "its boot")
	}
}

func (g *guest) bootOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	m, err := vm.Boot(ctx, g.software, g.config)
	if err != nil {
		return fmt.Errorf("guest %d: %w", g.number, err)
	}
	g.machine = m
	g.tell("guest %d booted in %.1f s", g.number, m.BootTime.Seconds())
	return nil
}

// close powers the guest off.
func (g *guest) close() error {
	if g.machine == nil {
		return nil
	}
	return g.machine.Close()
}

// work boots the guest and runs checks from the queue until it is empty.
func (g *guest) work(ctx context.Context, q *queue) (status int, err error) {
	if err := g.boot(ctx); err != nil {
		return 0, err
	}
	for err == nil {
		reset, names := q.next()
		var ended int
		switch {
		case reset:
			ended, err = g.again(ctx, "the checks of a reset", func() (int, error) { return g.reset(ctx) })
		case len(names) > 0:
			pattern := "^(" + strings.Join(names, "|") + ")$" + q.parts
			ended, err = g.again(ctx, pattern, func() (int, error) { return g.checks(ctx, func() {}, pattern) })
		default:
			return status, nil
		}
		status = max(status, ended)
	}
	return status, fmt.Errorf("guest %d: %w", g.number, err)
}

// again runs some checks. The first time that the guest stops answering, it throws the
// guest away and runs them in a new one.
func (g *guest) again(ctx context.Context, what string, run func() (int, error)) (int, error) {
	before := g.counts
	status, err := run()
	if !errors.Is(err, errHangs) {
		return status, err
	}
	g.tell("guest %d stopped answering in %s; its console ends:\n%s", g.number, what, g.console())
	if err := g.machine.Kill(); err != nil || g.replaced {
		return status, errors.Join(errHangs, err)
	}
	g.replaced, g.hung, g.counts = true, append(g.hung, what), before
	if err := errors.Join(os.RemoveAll(g.config.Disk), g.boot(ctx)); err != nil {
		return 0, err
	}
	return run()
}

// console returns the last lines of the guest's console.
func (g *guest) console() string {
	text, err := os.ReadFile(filepath.Join(g.config.Dir, vm.ConsoleFile))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// reset runs the check before a reset, kills the guest once that check says it is
// ready, boots the guest again from its disk, and runs the check after the reset.
func (g *guest) reset(ctx context.Context) (int, error) {
	type ending struct {
		status int
		err    error
	}
	ready, ended := make(chan struct{}), make(chan ending, 1)
	go func() {
		status, err := g.checks(ctx, sync.OnceFunc(func() { close(ready) }), "^"+beforeReset+"$")
		ended <- ending{status, err}
	}()
	select {
	case <-ready:
	case e := <-ended: // it failed before it was ready
		return max(e.status, 1), e.err
	}
	if err := g.machine.Kill(); err != nil {
		return 0, err
	}
	<-ended // its error is that the guest is gone
	g.tell("cut the power of guest %d", g.number)
	if err := g.boot(ctx); err != nil {
		return 0, err
	}
	return g.checks(ctx, func() {}, "^"+afterReset+"$")
}

// errHangs is returned for a guest in which checks neither end nor are stopped by their
// own limit.
var errHangs = errors.New("the guest does not answer")

// overtime is how much longer than their limit checks may take to say where they hang,
// in a guest whose processors are emulated on a busy machine.
const overtime = 2 * time.Minute

// checks runs the checks that match a pattern. It calls resettable when a check says
// that the guest may be reset. If the checks outlive their limit it returns [errHangs].
func (g *guest) checks(ctx context.Context, resettable func(), pattern string) (int, error) {
	g.counts.resettable, g.counts.rest, g.counts.prefix = resettable, "", ""
	if g.several {
		g.counts.prefix = fmt.Sprintf("%d| ", g.number)
	}
	program := wire.Command{Args: slices.Concat([]string{"/opt/checks"}, g.flags, []string{"-test.run=" + pattern}), Env: g.env}
	limited, stop := context.WithTimeoutCause(ctx, g.limit+overtime, errHangs)
	defer stop()
	status, err := g.machine.Run(limited, vm.Command{Command: program, Stdout: &g.counts, Stderr: os.Stderr})
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = context.Cause(limited)
	}
	if err == nil && status != 0 {
		g.tell("guest %d: checks %s exited with status %d", g.number, pattern, status)
	}
	return status, err
}

// output is held while printing, so that the lines of several guests stay whole.
var output sync.Mutex

// counter prints the output of tests and counts results by their lines "--- PASS:" and
// so on. A test with subtests counts once more than its subtests.
type counter struct {
	resettable              func() // called on checks.ResetNow
	prefix                  string // of every printed line
	rest                    string // the start of an incomplete line
	passed, failed, skipped int
}

// add adds another counter's results.
func (c *counter) add(o *counter) {
	c.passed, c.failed, c.skipped = c.passed+o.passed, c.failed+o.failed, c.skipped+o.skipped
}

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	lines := strings.SplitAfter(c.rest+string(b), "\n")
	c.rest = lines[len(lines)-1]
	output.Lock()
	defer output.Unlock()
	for _, whole := range lines[:len(lines)-1] {
		switch line := strings.TrimSpace(whole); {
		case line == checks.ResetNow:
			c.resettable()
		case strings.HasPrefix(line, "--- PASS:"):
			c.passed++
		case strings.HasPrefix(line, "--- FAIL:"):
			c.failed++
		case strings.HasPrefix(line, "--- SKIP:"):
			c.skipped++
		}
		if _, err := os.Stdout.WriteString(c.prefix + whole); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
