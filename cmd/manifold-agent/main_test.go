package main

import (
	"context"
	"io"
	"math"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// TestAfterPause proves that work starts after the pause, and that whoever waits for the
// group waits for work that has not started.
func TestAfterPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var group sync.WaitGroup
		began, started := time.Now(), time.Duration(-1)
		afterPause(&group)(func() { started = time.Since(began) })
		group.Wait()
		if started != backgroundPause {
			t.Errorf("started after %v", started)
		}
	})
}

// TestStoppedAgentPublishes proves that an agent which is stopped just after an answer
// still publishes the status and the Event that nobody waited for.
func TestStoppedAgentPublishes(t *testing.T) {
	p := harness.NewPlace(t)
	api := kubetest.Start()
	defer api.Stop()
	api.AddPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}})
	kubeconfig, err := api.Kubeconfig(p.Dir)
	p.Must(err)
	conf := &configfile.Agent{Node: "node1", APIServer: kubeconfig, Snapshot: p.Path("snapshot"), CNIDir: p.Dir, SysRoot: p.Dir, Socket: p.Path("agent.sock")}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, conf, "", io.Discard) }()

	agent := plan.Client{Socket: conf.Socket}
	for end := time.Now().Add(time.Minute); agent.Ping(ctx) != nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	api.Pause()
	p.Must(agent.Report(ctx, plan.Report{
		Version: plan.Version, Verb: "ADD", Later: true,
		Plan: &plan.Plan{ContainerID: "c1", Pod: plan.Pod{Namespace: "shop", Name: "web", UID: "u1"}},
	}))
	stop()
	select {
	case err := <-ended:
		t.Fatalf("the agent has not waited: %v", err)
	case <-time.After(200 * time.Millisecond): // its sources have ended long before
	}
	api.Resume()
	p.Must(<-ended)
	if got := api.Pod("shop", "web").Annotations[netattach.StatusAnnotation]; got == "" {
		t.Error("the status is lost")
	}
	if events := api.Events(); len(events) != 1 {
		t.Errorf("%d Events", len(events))
	}
}

// TestPlanOnceCollectsNoGarbage proves that the one-shot runs without the garbage
// collector, up to a limit.
func TestPlanOnceCollectsNoGarbage(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(math.MaxInt64)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	p := harness.NewPlace(t)
	p.Must(planOnce(t.Context(), &configfile.Agent{CNIDir: p.Dir, SysRoot: p.Dir}, strings.NewReader(""), io.Discard, io.Discard))
	if percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1); percent != -1 || limit != 64<<20 {
		t.Errorf("percent %d, limit %d", percent, limit)
	}
}
