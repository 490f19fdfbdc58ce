// Command sriovlab runs the checks of package checks on real SR-IOV functions: it
// builds our programs and the checks, boots a guest with two PFs and fourteen VFs
// (package vm), runs the checks inside with their output streamed, and ends with
// their exit status and the number of them.
//
//	go run ./test/sriovlab               # all checks
//	go run ./test/sriovlab -run Inventory
//	go run ./test/sriovlab -full         # every way, not representative ones
//	go run ./test/sriovlab -shell        # a shell in the same guest
//
// Then the guest is ended without warning and booted again with its disk, for the
// checks of what a power failure leaves.
//
// When anything fails, the guest's console is kept and its path printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/sriovlab/checks"
	"github.com/manifold-cni/manifold/test/vm"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// bootLimit is how long the guest may take to boot.
const bootLimit = 3 * time.Minute

// modules are the kernel modules that the checks need beside the hardware's: what
// delegates make, and what they send.
var modules = []string{"veth", "bridge", "macvlan", "8021q", "dummy"}

func main() {
	run := flag.String("run", "", "run only the checks whose names match this regular expression")
	timeout := flag.Duration("timeout", time.Hour, "end the checks after this time")
	count := flag.Int("count", 1, "run every check this many times")
	repeat := flag.Duration("repeat", 30*time.Second, "how long checks that repeat the same may do so")
	full := flag.Bool("full", false, "run every check in every way, not in representative ones")
	inside := flag.Bool("shell", false, "open a shell in the guest instead of running the checks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l := &lab{start: time.Now(), flags: []string{"-test.v", "-test.timeout=" + timeout.String()}, env: []string{
		checks.BudgetVariable + "=" + repeat.String(), fmt.Sprintf("%s=%t", checks.FullVariable, *full),
	}}
	status, err := l.run(ctx, func() (int, error) {
		if *inside {
			return shell(ctx, l.machine)
		}
		return l.all(ctx, *run, *count)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "sriovlab:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// lab is a run of the lab.
type lab struct {
	start    time.Time
	dir      string
	software *vm.Software
	config   vm.Config
	machine  *vm.Machine
	flags    []string // of the checks' program
	env      []string
	counts   counter
}

// tell says how far the run has come.
func (l *lab) tell(format string, args ...any) {
	fmt.Printf("sriovlab: %5.1fs %s\n", time.Since(l.start).Seconds(), fmt.Sprintf(format, args...))
}

// clean removes the run's directory, but for what tells why it went wrong.
func (l *lab) clean(well bool) error {
	if well {
		return os.RemoveAll(l.dir)
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != vm.ConsoleFile && e.Name() != vm.LogFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(l.dir, e.Name())))
		}
	}
	l.tell("kept the guest's console %s and QEMU's messages beside it", filepath.Join(l.dir, vm.ConsoleFile))
	return err
}

// run prepares, boots, uses and ends the guest.
func (l *lab) run(ctx context.Context, use func() (int, error)) (status int, err error) {
	if l.dir, err = os.MkdirTemp("", "sriovlab-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.clean(status == 0 && err == nil)) }()
	if l.software, err = vm.Install(ctx, os.Stdout); err != nil {
		return 0, err
	}
	files, err := build(l.dir)
	if err != nil {
		return 0, err
	}
	l.config = vm.Config{Dir: l.dir, PFs: 2, IOMMU: true, Modules: modules, Files: files, Disk: filepath.Join(l.dir, "disk")}
	l.tell("programs built; booting Linux %s", l.software.Release)
	if err := l.boot(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.machine.Close()) }()
	return use()
}

// boot boots the guest.
func (l *lab) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	m, err := vm.Boot(ctx, l.software, l.config)
	if err != nil {
		return err
	}
	l.machine = m
	l.tell("the guest booted in %.1f s", l.machine.BootTime.Seconds())
	return nil
}

// build builds what goes into the guest and returns it by the path there.
func build(dir string) (map[string]string, error) {
	plugins, err := harness.PluginDir()
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		return nil, err
	}
	if err := harness.Programs(programs, true); err != nil {
		return nil, err
	}
	checks := filepath.Join(dir, "checks.test")
	cmd := exec.Command("go", "test", "-c", "-tags", "sriovlab", "-ldflags", "-s -w", "-o", checks, "github.com/manifold-cni/manifold/test/sriovlab/checks")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the checks: %w\n%s", err, text)
	}
	return map[string]string{
		"/opt/cni/bin": plugins, "/opt/manifold": programs, "/opt/checks": checks,
		// Stands in for the SR-IOV CNI, whose configuration keys are understood by its name.
		"/opt/manifold/sriov": filepath.Join(programs, "scripted"),
	}, nil
}

// The checks between which the guest is reset, see the package checks.
const beforeReset, afterReset = "TestBeforeReset", "TestAfterReset"

// all runs the checks that match a pattern, those of a reset last, and prints how
// many there were.
func (l *lab) all(ctx context.Context, pattern string, count int) (int, error) {
	selected, err := regexp.Compile(pattern)
	if err != nil {
		return 0, err
	}
	status, err := l.checks(ctx, func() {}, "-test.run="+pattern, "-test.skip=^("+beforeReset+"|"+afterReset+")$", fmt.Sprintf("-test.count=%d", count))
	if err == nil && (selected.MatchString(beforeReset) || selected.MatchString(afterReset)) {
		var after int
		after, err = l.reset(ctx)
		status = max(status, after)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", l.counts.passed, l.counts.failed, l.counts.skipped)
	if err == nil && status == 0 && l.counts.passed == 0 {
		err = errors.New("no check ran")
	}
	return status, err
}

// reset runs the first half of the checks of a reset, ends the guest when that
// says so, boots it again with its disk, and runs the second half.
func (l *lab) reset(ctx context.Context) (int, error) {
	type ending struct {
		status int
		err    error
	}
	ready, ended := make(chan struct{}), make(chan ending, 1)
	go func() {
		status, err := l.checks(ctx, sync.OnceFunc(func() { close(ready) }), "-test.run=^"+beforeReset+"$")
		ended <- ending{status, err}
	}()
	select {
	case <-ready:
	case e := <-ended: // it failed
		return max(e.status, 1), e.err
	}
	if err := l.machine.Kill(); err != nil {
		return 0, err
	}
	<-ended // for the reason that the guest is gone
	l.tell("the guest's power has failed")
	if err := l.boot(ctx); err != nil {
		return 0, err
	}
	return l.checks(ctx, func() {}, "-test.run=^"+afterReset+"$")
}

// checks runs the checks' program with its arguments. resettable is called when a
// check says that the guest may be reset.
func (l *lab) checks(ctx context.Context, resettable func(), args ...string) (int, error) {
	l.counts.resettable, l.counts.rest = resettable, ""
	program := wire.Command{Args: slices.Concat([]string{"/opt/checks"}, l.flags, args), Env: l.env}
	status, err := l.machine.Run(ctx, vm.Command{Command: program, Stdout: &l.counts, Stderr: os.Stderr})
	if err == nil {
		l.tell("the checks ended with status %d", status)
	}
	return status, err
}

// counter prints what tests print and counts them by the lines that tell their
// ends; a test with parts counts like one of its parts.
type counter struct {
	resettable              func() // called for checks.ResetNow
	rest                    string // of a line that has not ended
	passed, failed, skipped int
}

func (c *counter) Write(b []byte) (int, error) {
	lines := strings.SplitAfter(c.rest+string(b), "\n")
	c.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		switch line = strings.TrimSpace(line); {
		case line == checks.ResetNow:
			c.resettable()
		case strings.HasPrefix(line, "--- PASS:"):
			c.passed++
		case strings.HasPrefix(line, "--- FAIL:"):
			c.failed++
		case strings.HasPrefix(line, "--- SKIP:"):
			c.skipped++
		}
	}
	return os.Stdout.Write(b)
}
