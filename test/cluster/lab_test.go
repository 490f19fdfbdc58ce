//go:build clusterlab

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/harness"
)

// lab is the cluster that all tests use, one after the other.
var lab *Cluster

func TestMain(m *testing.M) {
	code, err := Enter()
	if err == nil && code < 0 {
		code, err = inside(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		code = 1
	}
	os.Exit(code)
}

// inside starts the cluster, installs Manifold, and runs the tests.
func inside(m *testing.M) (code int, err error) {
	start := time.Now()
	tell := func(what string) { fmt.Printf("cluster: %5.1fs %s\n", time.Since(start).Seconds(), what) }
	defer func() {
		if err != nil || code != 0 {
			tell("the logs are kept in " + keepLogs())
		}
	}()
	ctx := context.Background()
	if lab, err = Start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lab.Stop()) }()
	tell("the node is ready")
	if err := lab.Install(ctx); err != nil {
		return 0, err
	}
	tell("Manifold is installed")
	code = m.Run()
	tell("the tests have ended")
	return code, nil
}

// keepLogs copies the logs to a place that outlives the machine, and returns it.
func keepLogs() string {
	to, err := os.MkdirTemp("", "manifold-cluster-logs-")
	for pattern, root := range map[string]string{"/control/*.log": lab.dir, "/node/*.log": lab.dir, "/pods/*/*/*.log": "/var/log"} {
		logs, e := filepath.Glob(root + pattern)
		err = errors.Join(err, e)
		for _, log := range logs {
			content, e := os.ReadFile(log)
			flat := strings.ReplaceAll(strings.TrimPrefix(log, root+"/"), "/", "-")
			err = errors.Join(err, e, os.WriteFile(filepath.Join(to, flat), content, 0o600))
		}
	}
	if err != nil {
		return fmt.Sprintf("%s, as far as possible: %v", to, err)
	}
	return to
}

// fixture is what a test has of the lab: everything that it makes is removed with
// it, and the node must be as before.
type fixture struct {
	*testing.T
	ctx    context.Context
	before harness.HostState
}

// warm runs a pod once: the bridge plugin leaves its bridges on purpose, which is
// no part of what a pod must give back.
var warm sync.Once

// begin begins a test.
func begin(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, ctx: context.Background()}
	warm.Do(func() {
		f.run("warm", networks("storage, plain"))
		f.remove("warm")
	})
	f.before = f.hostState()
	t.Cleanup(f.unchanged)
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// eventually waits until ok returns nil.
func (f *fixture) eventually(what string, ok func() error) {
	f.Helper()
	f.must(eventually(f.ctx, what, func(context.Context) error { return ok() }))
}

// hostState is what a pod must leave as it was: links, addresses, routes and
// firewall, network namespaces, addresses given out, journals, the runtime's
// cache of results. Definitions are no pod's.
func (f *fixture) hostState() harness.HostState {
	f.Helper()
	s, err := harness.Capture("/var/lib/cni", netnsDir)
	f.must(err)
	return slices.DeleteFunc(s, func(line string) bool {
		path, isFile := strings.CutPrefix(line, "file ")
		return strings.Contains(line, "definitions.snapshot") || isFile && filepath.Dir(path) == netnsDir && untouched(path)
	})
}

// netnsDir is where the runtime keeps sandboxes' network namespaces.
const netnsDir = "/run/netns"

// untouched tells whether no plugin was ever called for a network namespace: it
// has its loopback alone, which is down. A runtime that is killed before it has
// recorded the namespace it made forgets it.
func untouched(path string) bool {
	var links []netlink.Link
	err := (&harness.NetNS{Path: path}).Do(func() (err error) {
		links, err = netlinksafe.LinkList()
		return err
	})
	return err == nil && len(links) == 1 && links[0].Attrs().Flags&net.FlagUp == 0
}

// unchanged waits until the node is as before the test.
func (f *fixture) unchanged() {
	f.Helper()
	var diff string
	err := eventually(f.ctx, "the node to be as before", func(context.Context) error {
		if diff = f.before.Diff(f.hostState()); diff != "" {
			return errors.New("left behind")
		}
		return nil
	})
	if err != nil {
		f.Errorf("%v:\n%s", err, diff)
	}
}
