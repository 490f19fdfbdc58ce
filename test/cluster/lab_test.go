//go:build clusterlab || nodelab

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/vm"
)

// lab is the cluster that all tests share, one after the other.
var lab *Cluster

func TestMain(m *testing.M) {
	code, err := enter()
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
	began := time.Now()
	tell := func(what string) { fmt.Printf("cluster: %5.1fs %s\n", time.Since(began).Seconds(), what) }
	defer func() { // after the logs are kept: some are on the node
		if lab != nil {
			err = errors.Join(err, lab.Stop())
		}
	}()
	defer func() {
		if err != nil || code != 0 {
			tell("kept the logs in " + keepLogs(os.Getenv(dirEnv)))
		}
	}()
	ctx := context.Background()
	if lab, err = start(ctx); err == nil {
		tell("the node is ready")
		err = lab.Install(ctx)
	}
	if err != nil && lab != nil {
		err = fmt.Errorf("%w\n%s", err, testimony(began))
	}
	if err != nil {
		return 0, err
	}
	tell("Manifold is installed")
	code = m.Run()
	tell(fmt.Sprintf("the tests have ended: %d passed, %d failed", passed, failed))
	return code, nil
}

// Numbers of tests that passed and failed. A test with subtests counts once per subtest
// that called begin.
var passed, failed int

// keepLogs copies the logs of a run to a directory that outlives the machine, and
// returns a description of that directory.
func keepLogs(dir string) string {
	to, err := os.MkdirTemp("", "manifold-cluster-logs-")
	for _, pattern := range []string{controlDir + "/*.log", nodeDir + "/*.log", guestDir + "/" + vm.ConsoleFile, guestDir + "/" + vm.LogFile} {
		logs, e := filepath.Glob(filepath.Join(dir, pattern))
		err = errors.Join(err, e)
		for _, log := range logs {
			content, e := os.ReadFile(log)
			flat := strings.ReplaceAll(strings.TrimPrefix(log, dir+"/"), "/", "-")
			err = errors.Join(err, e, os.WriteFile(filepath.Join(to, flat), content, 0o600))
		}
	}
	if lab != nil {
		pods, e := onNodeSh("tail -n +1 /var/log/pods/*/*/*.log")
		err = errors.Join(err, e, os.WriteFile(filepath.Join(to, "pods.log"), pods, 0o600))
	}
	if err != nil {
		return fmt.Sprintf("%s, as far as possible: %v", to, err)
	}
	return to
}

// onNodeSh runs a line of shell on the node, which may be down.
func onNodeSh(line string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return lab.Node.run(ctx, "/bin/sh", "-c", line)
}

// fixture is a test's access to the lab. Its cleanup removes everything the test
// created, then checks that the node is as it was before.
type fixture struct {
	*testing.T
	ctx    context.Context
	began  time.Time
	before harness.HostState
	pods   []string // created and not yet removed
}

// warm creates the bridges once.
var warm sync.Once

// bridges runs a pod so that the bridge plugin creates its bridges. The plugin never
// removes them, so they are no part of what a pod must leave unchanged.
func (f *fixture) bridges() {
	f.Helper()
	f.run("warm", bridged...)
	f.remove("warm")
}

// begin starts a test: it waits until the node is at rest, records its state, and
// checks on cleanup that the state is the same.
func begin(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, ctx: context.Background(), began: time.Now()}
	t.Cleanup(func() { // runs last
		if t.Failed() {
			failed++
			t.Log(testimony(f.began))
		} else {
			passed++
		}
	})
	warm.Do(f.bridges)
	f.eventually("the plugin to be at rest", func() error {
		f.before = f.hostState()
		if i := slices.IndexFunc(f.before, isLock); i >= 0 {
			return errors.New(f.before[i])
		}
		return nil
	})
	t.Cleanup(f.unchanged)
	return f
}

// isLock tells whether a line of a node's state is a sandbox's lock. Between tests no
// pod has a sandbox, so a lock means that a call of the plugin is under way: some time
// after a sandbox has stopped, the kubelet stops it once more.
func isLock(line string) bool {
	return strings.HasPrefix(line, "file ") && strings.Contains(line, "@eth0.lock ")
}

// testimony returns what a reader of a failure needs first, since the kept logs may be
// out of reach: the remaining pods, the events since a time, and the last lines of the
// logs of agent, runtime and kubelet.
func testimony(since time.Time) string {
	var out strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods, err := lab.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		say("pods: %v", err)
		pods = &corev1.PodList{}
	}
	for _, p := range pods.Items {
		say("pod %s/%s: phase %s %s, created %v, deleted %v: %+v", p.Namespace, p.Name, p.Status.Phase, p.Status.Reason, p.CreationTimestamp, p.DeletionTimestamp, p.Status.ContainerStatuses)
	}
	events, err := lab.Client.CoreV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		say("events: %v", err)
		events = &corev1.EventList{}
	}
	for _, e := range events.Items {
		if e.LastTimestamp.After(since) || e.EventTime.After(since) {
			say("Event of %s, %d times: %s: %s", e.InvolvedObject.Name, e.Count, e.Reason, e.Message)
		}
	}
	agent, err := onNodeSh("tail -n 50 /var/log/pods/*_manifold-*/agent/*.log")
	say("the end of the agent's log (error: %v):\n%s", err, agent)
	for _, service := range []string{Agent, Containerd, Kubelet, Standalone} {
		if log, err := os.ReadFile(filepath.Join(lab.Node.logs, service+".log")); err == nil { // not every service was started
			say("the end of the log of %s:\n%s", service, log[max(0, len(log)-6000):])
		}
	}
	return out.String()
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
	start := time.Now()
	f.must(eventually(f.ctx, what, func(context.Context) error { return ok() }))
	if d := time.Since(start); d > noteworthy {
		f.Logf("waited %.0f s for %s", d.Seconds(), what)
	}
}

// noteworthy is how long a wait takes before the test logs it, to show where time goes.
const noteworthy = 5 * time.Second

// hostState returns the state that a pod must leave unchanged: links, addresses,
// routes, firewall, network namespaces, allocated addresses, journals, the runtime's
// result cache. It leaves out the snapshot of definitions, which belongs to no pod, and
// empty claims, which nobody holds.
func (f *fixture) hostState() harness.HostState {
	f.Helper()
	var s harness.HostState
	f.ask(&s, "state")
	return slices.DeleteFunc(s, func(line string) bool {
		return strings.Contains(line, "definitions.snapshot") || strings.Contains(line, "/manifold/devices/") && strings.Contains(line, " 0 bytes ")
	})
}

// unchanged waits until the node is as it was before the test.
func (f *fixture) unchanged() {
	f.Helper()
	var diff string
	err := eventually(f.ctx, "the node to be as it was before the test", func(context.Context) error {
		if diff = f.before.Diff(f.hostState()); diff != "" {
			return errors.New("the test left something behind")
		}
		return nil
	})
	if err != nil {
		f.Errorf("%v:\n%s", err, diff)
	}
}

// restart kills services and starts them again in the given order. The runtime must
// come before the kubelet, which exits if it finds no runtime.
func (f *fixture) restart(services ...string) {
	f.Helper()
	for _, s := range services {
		f.must(lab.Node.KillService(s))
	}
	for _, s := range services {
		f.must(lab.Node.StartService(s))
		if s == Containerd {
			f.eventually(s, func() error { return lab.Node.runtimeServes(f.ctx) })
		}
	}
}
