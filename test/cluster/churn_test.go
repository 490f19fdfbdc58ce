//go:build clusterlab

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// churn creates and deletes pods until it is stopped. It retries failed API requests,
// because outages of the API server are part of what it tests.
type churn struct {
	f       *fixture
	label   string
	patient bool // delete a pod only after it has run with all its networks
	stop    context.CancelFunc
	work    sync.WaitGroup
	created atomic.Int32
	ran     atomic.Int32 // pods that ran; counted only if patient
}

// kinds are the kinds of pods in a churn, and the networks that each must get, by
// interface.
var kinds = []struct {
	options []option
	want    map[string]string
}{
	{nil, map[string]string{"eth0": "cluster-net"}},
	{[]option{networks("storage, plain")}, map[string]string{"eth0": "cluster-net", "net1": storage, "net2": plain}},
	{[]option{networks("red, storage"), container("main", Red)}, map[string]string{"eth0": "cluster-net", "net1": red, "net2": storage}},
}

// writers is the number of goroutines that create pods. On a small machine more would
// only wait for each other.
const writers = 4

// startChurn starts the writers. Each has up to two pods at a time.
func (f *fixture) startChurn(label string) *churn {
	c := &churn{f: f, label: label}
	c.start()
	return c
}

func (c *churn) start() {
	ctx, stop := context.WithCancel(c.f.ctx)
	c.stop = stop
	for w := range writers {
		c.work.Go(func() { c.write(ctx, w) })
	}
	c.f.Cleanup(func() {
		stop()
		c.work.Wait()
		c.f.must(lab.Client.CoreV1().Pods(namespace).DeleteCollection(c.f.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: c.selector()}))
		c.f.gone(c.selector())
	})
}

// write creates and deletes pods as one writer.
func (c *churn) write(ctx context.Context, w int) {
	random, last := rand.New(rand.NewPCG(1, uint64(w))), ""
	for i := 0; ctx.Err() == nil; i++ {
		kind := (w + i) % len(kinds)
		name := fmt.Sprintf("%s-%d-%d-%d", c.label, w, i, kind)
		c.create(ctx, name, kind)
		if c.patient {
			c.await(ctx, name, kind)
		}
		if last != "" {
			c.delete(ctx, last)
		}
		last = name
		if !c.patient { // some pods are deleted before they run, some while they start, some later
			sleep(ctx, time.Duration(random.IntN(3000))*time.Millisecond)
		}
	}
}

// await waits until a pod runs and checks its network-status.
func (c *churn) await(ctx context.Context, name string, kind int) {
	var pod *corev1.Pod
	err := eventually(ctx, "pod "+name+" to run", func(context.Context) (err error) {
		if pod, err = c.f.get(name); err == nil && !(ready(pod) && published(pod)) {
			err = fmt.Errorf("its phase is %s: %s", pod.Status.Phase, c.f.events(name))
		}
		return err
	})
	if ctx.Err() != nil {
		return // settle checks the pods that are left
	}
	if err != nil {
		c.f.Error(err)
		return
	}
	status, err := statusOf(pod)
	if got := networksOf(status); err != nil || !maps.Equal(got, kinds[kind].want) {
		c.f.Errorf("pod %s: status has %v, want %v; %v", name, got, kinds[kind].want, err)
	}
	c.ran.Add(1)
}

// goOn waits until more pods of a patient churn have run.
func (c *churn) goOn() {
	c.f.Helper()
	enough := c.ran.Load() + 2*writers // all that may be in flight, and as many again
	c.f.eventually("pods to come and go", func() error {
		if now := c.ran.Load(); now < enough {
			return fmt.Errorf("%d have run, want %d", now, enough)
		}
		return nil
	})
}

// reach waits until the churn has created this many pods in all.
func (c *churn) reach(pods int32) {
	c.f.Helper()
	for now := c.created.Load(); now < pods; now = c.created.Load() {
		c.f.eventually("one more pod to be created", func() error {
			if c.created.Load() == now {
				return fmt.Errorf("%d of %d are created", now, pods)
			}
			return nil
		})
	}
}

func (c *churn) selector() string { return "churn=" + c.label }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *churn) create(ctx context.Context, name string, kind int) {
	pod := template(name, kinds[kind].options...)
	pod.Labels = map[string]string{"churn": c.label}
	c.insist(ctx, func(ctx context.Context) error {
		_, err := lab.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return err
	})
	c.created.Add(1)
}

func (c *churn) delete(ctx context.Context, name string) {
	c.insist(ctx, func(ctx context.Context) error {
		err := lab.Client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return err
	})
}

// insist retries a request until it succeeds or the churn stops.
func (c *churn) insist(ctx context.Context, do func(context.Context) error) {
	for ctx.Err() == nil && do(ctx) != nil {
		sleep(ctx, 200*time.Millisecond)
	}
}

// settle stops the churn, waits until every pod that is left runs and has its
// network-status, and checks those pods. It excepts pods that the kubelet itself
// refused: a kubelet that has restarted knows no device until the device plugin
// registers again.
func (c *churn) settle() {
	f := c.f
	f.Helper()
	c.stop()
	c.work.Wait()
	refused := func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "UnexpectedAdmissionError"
	}
	var pods []corev1.Pod
	f.eventually("the remaining pods of "+c.label+" to run", func() (err error) {
		if pods, err = f.list(c.selector()); err != nil {
			return err
		}
		for _, p := range pods {
			if !(ready(&p) && published(&p)) && !refused(p) {
				return fmt.Errorf("pod %s: phase %s %s: %s", p.Name, p.Status.Phase, p.Status.Reason, f.events(p.Name))
			}
		}
		return nil
	})
	ran := slices.DeleteFunc(slices.Clone(pods), refused)
	for _, p := range ran {
		kind, err := strconv.Atoi(p.Name[strings.LastIndexByte(p.Name, '-')+1:])
		f.must(err)
		here := f.check(&p, kinds[kind].want)
		if kinds[kind].want["net1"] == red {
			f.isDevice(here, "net1", f.device(here, "main", Red))
		}
	}
	f.Logf("created %d pods; of the remaining ones %d run, and the kubelet refused %d", c.created.Load(), len(ran), len(pods)-len(ran))
}

// killAgent kills an agent's process.
func (f *fixture) killAgent() error {
	pid, err := f.agentPID()
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// agentPID returns the process ID of an agent, found by its command line.
func (f *fixture) agentPID() (int, error) {
	f.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	f.must(err)
	for _, e := range entries {
		raw, err := os.ReadFile(e)
		if args := strings.Split(string(raw), "\x00"); err != nil || len(args) < 2 || filepath.Base(args[0]) != "manifold-agent" || args[1] != "serve" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		f.must(err)
		return pid, nil
	}
	return 0, errors.New("no agent is running")
}

// outages says how hard TestOutages is.
type outages struct {
	pods      int32         // minimum number of pods created in each outage
	kills     int           // of the agent; each makes the kubelet wait twice as long before it restarts the agent
	apiserver time.Duration // how long the API server is away; its clients retry ever less often
}

// howHard returns the numbers of an ordinary run or, with the environment variable
// OUTAGES=long, those of a longer one.
func howHard() outages {
	if os.Getenv("OUTAGES") == "long" {
		return outages{pods: 200, kills: 4, apiserver: time.Minute}
	}
	return outages{pods: 16, kills: 2, apiserver: 5 * time.Second}
}

// TestOutages proves that pods survive outages: while pods come and go, it kills the
// kubelet, the runtime and the agent, and takes the API server away. Afterwards every
// remaining pod has exactly what it asked for, and the deleted ones left nothing
// behind.
func TestOutages(t *testing.T) {
	hard := howHard()
	agent := func(f *fixture) {
		for range hard.kills {
			f.eventually("an agent to kill", f.killAgent)
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
		}
	}
	kubelet := func(f *fixture) {
		f.restart(Kubelet)
		time.Sleep(5 * time.Second)
	}
	runtime := func(f *fixture) {
		f.restart(Containerd)
		time.Sleep(5 * time.Second)
	}
	api := func(f *fixture) {
		f.must(lab.API.Kill())
		time.Sleep(hard.apiserver)
		f.must(lab.API.Restart())
	}
	for _, c := range []struct {
		name   string
		outage func(*fixture)
	}{
		{"agent", agent},
		{"kubelet", kubelet},
		{"containerd", runtime},
		{"apiserver", api},
		{"all", func(f *fixture) {
			f.eventually("an agent to kill", f.killAgent)
			f.must(lab.API.Kill())
			f.restart(Containerd, Kubelet)
			time.Sleep(hard.apiserver)
			f.must(lab.API.Restart())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := begin(t)
			churn := f.startChurn("outage-" + c.name)
			time.Sleep(3 * time.Second) // let the first pods start
			c.outage(f)
			churn.reach(hard.pods)
			churn.settle()
		})
	}
}
