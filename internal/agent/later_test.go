package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
)

// slowServer is an API server that accepts a status only when the test allows it.
type slowServer struct{ may, took chan string }

// PublishStatus implements Publisher.
func (s slowServer) PublishStatus(ctx context.Context, _, name, _, _ string) error {
	select {
	case <-s.may:
		s.took <- name
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Event implements Publisher.
func (s slowServer) Event(context.Context, kube.PodRef, string, string, string) error { return nil }

// NodeEvent implements Publisher.
func (s slowServer) NodeEvent(context.Context, string, string, string) error { return nil }

// A caller that does not wait for its status is answered before the status is
// published.
func TestStatusIsPublishedLater(t *testing.T) {
	server := slowServer{make(chan string), make(chan string)}
	a := New(Sources{Publisher: server}, slog.New(slog.DiscardHandler), func(f func()) { go f() })
	report := plan.Report{Version: plan.Version, Verb: "ADD", Later: true, Plan: &plan.Plan{Pod: plan.Pod{Namespace: "default", Name: "app"}}}
	if err := a.Report(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	close(server.may)
	if name := <-server.took; name != "app" {
		t.Errorf("published the status of %q", name)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	waiting := slowServer{make(chan string), make(chan string)}
	a, report.Later = New(Sources{Publisher: waiting}, slog.New(slog.DiscardHandler), nil), false
	if err := a.Report(ctx, report); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "default/app") {
		t.Errorf("a caller that waits got %v", err)
	}
}
