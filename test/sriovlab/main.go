// Command sriovlab runs the checks of package checks on real SR-IOV functions. It
// builds our programs and the checks, boots guests with two PFs and fourteen VFs each
// (package vm), runs the checks inside while streaming their output, prints how many
// there were, and exits with their status.
//
//	go run ./test/sriovlab               # all checks
//	go run ./test/sriovlab -run Inventory
//	go run ./test/sriovlab -full         # every way, not representative ones
//	go run ./test/sriovlab -shell        # a shell in the same guest
//
// A check mostly waits for one program after another and uses one processor of two. So
// two guests share the checks: each takes the next few when it is done. One guest also
// loses its power and boots again from its disk, for the checks of what a power failure
// leaves.
//
// Checks that do not end print where they hang and fail. An emulated machine, though, can
// stand still for no fault of ours. A guest that stops answering is thrown away with its
// console printed, and another one begins its checks again, once. A guest that does not
// boot is started anew. The last lines say so.
//
// If anything fails, the command keeps the guests' consoles and prints where they are.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/sriovlab/checks"
	"github.com/manifold-cni/manifold/test/vm"
)

// bootLimit is how long a guest may take to boot, which takes half a minute. It allows for
// a busy machine. A guest that does not boot is started anew, boots times in all: its
// kernel can stand still before it has printed a line.
const (
	bootLimit = 6 * time.Minute
	boots     = 2
)

// modules are the kernel modules that the checks need in addition to the hardware's:
// for the devices that delegates create.
var modules = []string{"veth", "bridge", "macvlan", "8021q", "dummy"}

func main() {
	run := flag.String("run", "", "run only checks with names that match this regular `expression`")
	timeout := flag.Duration("timeout", 10*time.Minute, "stop a few checks that a guest takes at once after this `time`")
	count := flag.Int("count", 1, "run each check this many `times`")
	repeat := flag.Duration("repeat", 10*time.Second, "how long checks that only repeat rounds go on")
	full := flag.Bool("full", false, "run each check in every way instead of in representative ones")
	guests := flag.Int("guests", min(2, runtime.NumCPU()), "share the checks among this many `guests`")
	inside := flag.Bool("shell", false, "open a shell in a guest instead of running the checks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l := &lab{start: time.Now(), limit: *timeout, flags: []string{"-test.v", "-test.timeout=" + timeout.String(), fmt.Sprintf("-test.count=%d", *count)}, env: []string{
		checks.BudgetVariable + "=" + repeat.String(), fmt.Sprintf("%s=%t", checks.FullVariable, *full),
	}}
	status, err := l.run(ctx, func() (int, error) {
		if *inside {
			return l.shell(ctx)
		}
		return l.all(ctx, *run, *guests)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "sriovlab:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// lab is one run of the lab.
type lab struct {
	start    time.Time
	limit    time.Duration // for the checks that a guest takes at once
	dir      string
	software *vm.Software
	files    map[string]string // copied into each guest
	flags    []string          // of the checks' program
	env      []string
	guests   []*guest
}

// tell prints the progress of the run.
func (l *lab) tell(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf("sriovlab: %5.1fs %s\n", time.Since(l.start).Seconds(), fmt.Sprintf(format, args...))
}

// clean removes the run's directory, but after a failure keeps the files that help to
// find its cause.
func (l *lab) clean(well bool) error {
	if well {
		return os.RemoveAll(l.dir)
	}
	var problems []error
	for _, g := range l.guests {
		for _, file := range []string{vm.ConsoleFile, vm.LogFile} {
			to := fmt.Sprintf("%s-%d", filepath.Join(l.dir, file), g.number)
			if err := os.Rename(filepath.Join(g.config.Dir, file), to); err != nil && !errors.Is(err, os.ErrNotExist) {
				problems = append(problems, err)
			}
		}
		problems = append(problems, os.RemoveAll(g.config.Dir))
	}
	l.tell("kept the guests' consoles and QEMU's messages in %s", l.dir)
	return errors.Join(append(problems, os.RemoveAll(l.programs()), os.RemoveAll(l.checks()))...)
}

// programs and checks are built here; both go into the guests.
func (l *lab) programs() string { return filepath.Join(l.dir, "programs") }
func (l *lab) checks() string   { return filepath.Join(l.dir, "checks.test") }

// run prepares guests, calls use, and powers the guests off.
func (l *lab) run(ctx context.Context, use func() (int, error)) (status int, err error) {
	if l.dir, err = os.MkdirTemp("", "sriovlab-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.clean(status == 0 && err == nil)) }()
	if l.software, err = vm.Install(ctx, os.Stdout); err != nil {
		return 0, err
	}
	if err := l.build(); err != nil {
		return 0, err
	}
	l.tell("programs built; booting Linux %s", l.software.Release)
	defer func() {
		for _, g := range l.guests {
			err = errors.Join(err, g.close())
		}
	}()
	return use()
}

// build builds what goes into the guests.
func (l *lab) build() error {
	plugins, err := harness.PluginDir()
	if err != nil {
		return err
	}
	if err := os.Mkdir(l.programs(), 0o755); err != nil {
		return err
	}
	built := make(chan error, 1)
	go func() { built <- l.buildChecks() }()
	if err := errors.Join(harness.Programs(l.programs(), true), <-built); err != nil {
		return err
	}
	l.files = map[string]string{
		"/opt/cni/bin": plugins, "/opt/manifold": l.programs(), "/opt/checks": l.checks(),
		// A stand-in for the SR-IOV CNI: by this name Manifold knows the meaning of its
		// configuration keys.
		"/opt/manifold/sriov": filepath.Join(l.programs(), "scripted"),
	}
	return nil
}

// buildChecks builds the program of the checks.
func (l *lab) buildChecks() error {
	cmd := exec.Command("go", "test", "-c", "-tags", "sriovlab", "-ldflags", "-s -w", "-o", l.checks(), "github.com/manifold-cni/manifold/test/sriovlab/checks")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the checks: %w\n%s", err, text)
	}
	return nil
}

// The checks before and after a guest's reset, see package checks.
const beforeReset, afterReset = "TestBeforeReset", "TestAfterReset"

// list returns the names of the checks that a pattern selects, except those of a reset,
// and whether it selects those.
func (l *lab) list(ctx context.Context, pattern string) (names []string, reset bool, err error) {
	top, _, _ := strings.Cut(pattern, "/") // the rest selects subtests
	out, err := exec.CommandContext(ctx, l.checks(), "-test.list="+cmp.Or(top, ".")).Output()
	if err != nil {
		return nil, false, fmt.Errorf("list the checks: %w", err)
	}
	for _, name := range strings.Fields(string(out)) {
		if name == beforeReset || name == afterReset {
			reset = true
		} else if strings.HasPrefix(name, "Test") {
			names = append(names, name)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names, reset, nil
}

// long are the checks that take longest. They run first, in this order, so that what is
// left at the end is short and no guest waits long for another.
var long = []string{
	"TestKilledAtEveryPointGivesTheVFBack", "TestClauseVF", "TestVFGoneDuringADD", "TestVFGoneAfterADD", "TestVFGoneBeforeADD",
	"TestDamagedJournalGivesTheVFBack", "TestVFWithoutCarrier", "TestLiesAboutVFsAreFoundOut",
}

// rank returns a check's place in the order.
func rank(name string) int {
	if i := slices.Index(long, name); i >= 0 {
		return i
	}
	return len(long)
}

// all runs the checks that match a pattern in at most this many guests, and prints how
// many there were.
func (l *lab) all(ctx context.Context, pattern string, guests int) (status int, err error) {
	q := &queue{}
	if q.checks, q.reset, err = l.list(ctx, pattern); err != nil {
		return 0, err
	}
	if _, parts, ok := strings.Cut(pattern, "/"); ok {
		q.parts = "/" + parts
	}
	q.guests = max(1, min(guests, q.jobs()))
	statuses, errs := make([]int, q.guests), make([]error, q.guests)
	var wg sync.WaitGroup
	for i := range q.guests {
		g, err := l.guest()
		if err != nil {
			return 0, err
		}
		g.several = q.guests > 1
		wg.Go(func() { statuses[i], errs[i] = g.work(ctx, q) })
	}
	wg.Wait()
	var total counter
	for _, g := range l.guests {
		total.add(&g.counts)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	for _, g := range l.guests {
		for _, what := range g.hung {
			l.tell("GUEST %d STOPPED ANSWERING in %s; what it had not finished was run again in a new one, find out why", g.number, what)
		}
	}
	err = errors.Join(errs...)
	if status = slices.Max(statuses); err == nil && status == 0 && total.passed == 0 {
		err = errors.New("no check ran")
	}
	return status, err
}

// queue is the work that is left.
type queue struct {
	guests int
	parts  string // subtests of checks, as a pattern that begins with a slash

	mu     sync.Mutex // guards the fields below
	reset  bool
	checks []string
}

// jobs returns how many guests can have work.
func (q *queue) jobs() int {
	n := len(q.checks)
	if q.reset {
		n++
	}
	return n
}

// atOnce is the most checks that a guest takes at once. A batch saves time: each start
// of the checks' program takes a second in a guest.
const atOnce = 4

// next returns a guest's next work: first the checks of a reset, which take longest,
// then batches of other checks, smaller towards the end so that all guests finish
// together.
func (q *queue) next() (reset bool, names []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.reset {
		q.reset = false
		return true, nil
	}
	n := len(q.checks)
	if q.guests > 1 {
		n = min(n, max(1, min(atOnce, n/(4*q.guests))))
	}
	names, q.checks = q.checks[:n], q.checks[n:]
	return false, names
}
