package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
)

// deaf is a source of pods that answers when it may, whatever its caller wants.
type deaf struct{ asked, answer chan struct{} }

// newDeaf returns a deaf source.
func newDeaf() deaf { return deaf{make(chan struct{}), make(chan struct{})} }

// Pod implements kube.Pods.
func (d deaf) Pod(context.Context, string, string, string) (*corev1.Pod, error) {
	close(d.asked)
	<-d.answer
	return nil, kube.ErrNotFound
}

// slow is a source of pods that answers when its caller has waited long enough.
type slow struct{}

// Pod implements kube.Pods.
func (slow) Pod(ctx context.Context, _, _, _ string) (*corev1.Pod, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// asking returns a request that asks for a pod.
func asking() plan.Request {
	return plan.Request{
		Version: plan.Version, ContainerID: "c1", NetNS: "/run/netns/c1", IfName: "eth0", PodNamespace: "shop", PodName: "web", PodUID: "u1",
		Config: []byte(`{"cniVersion":"1.1.0","name":"manifold","type":"manifold","clusterNetwork":"cl"}`),
	}
}

// TestHungPlan proves that a plan is hung only when it does not return long after its
// time, and no more once it does.
func TestHungPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := newDeaf()
		c := newCalls(slog.New(slog.DiscardHandler))
		a := New(Sources{Pods: pods, calls: c}, slog.New(slog.DiscardHandler), nil)
		const bound = 4 * time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		defer cancel()
		go func() { _, _ = a.Plan(ctx, asking()) }()
		time.Sleep(bound + hungTime - time.Second)
		if err := c.hung(); err != nil {
			t.Errorf("within its time: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := c.hung(); err == nil || !strings.Contains(err.Error(), "plan") {
			t.Errorf("after its time: %v", err)
		}
		close(pods.answer)
		synctest.Wait()
		if err := c.hung(); err != nil || len(c.late) > 0 {
			t.Errorf("after it returned: %v", err)
		}
	})
}

// TestSlowPlansAreNotHung proves that plans which wait for a source all their time, one
// after another for hours, are no reason to restart.
func TestSlowPlansAreNotHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCalls(slog.New(slog.DiscardHandler))
		a := New(Sources{Pods: slow{}, calls: c}, slog.New(slog.DiscardHandler), nil)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			if _, err := a.Plan(ctx, asking()); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			synctest.Wait()
			if err := c.hung(); err != nil || len(c.late) > 0 {
				t.Fatalf("%v, %d late", err, len(c.late))
			}
		}
	})
}

// TestHealthOfAHungAgent proves that an agent whose socket answers is unhealthy while a
// plan hangs, and only then.
func TestHealthOfAHungAgent(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent-") // a socket's name must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	l, err := plan.Listen(dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	pods := newDeaf()
	c := newCalls(slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	go func() {
		served <- plan.Serve(ctx, l, New(Sources{Pods: pods, calls: c}, slog.New(slog.DiscardHandler), nil))
	}()
	health := func() int {
		w := httptest.NewRecorder()
		healthz(w, httptest.NewRequest(http.MethodGet, "/healthz", nil), plan.Client{Socket: socket}, c)
		return w.Code
	}
	asker, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = plan.Client{Socket: socket}.Plan(asker, asking())
	}()
	<-pods.asked
	if got := health(); got != http.StatusOK {
		t.Errorf("while somebody waits: %d", got)
	}
	leave()
	<-left
	for late := 0; late == 0; time.Sleep(time.Millisecond) { // until the agent knows that its caller left
		c.mu.Lock()
		for under := range c.late {
			late++
			c.late[under] = time.Now().Add(-hungTime)
		}
		c.mu.Unlock()
	}
	if got := health(); got != http.StatusServiceUnavailable {
		t.Errorf("while a plan hangs: %d", got)
	}
	close(pods.answer)
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := c.hung(); err != nil {
		t.Error(err)
	}
}
