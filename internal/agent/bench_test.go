package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
)

// cached is the API server of an agent whose informers have synced: it answers from
// memory, and takes whatever is published. Every pod selects the networks.
type cached struct {
	networks    string
	definitions map[string]*netattach.Definition
}

// Pod implements kube.Pods.
func (c cached) Pod(_ context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: types.UID(uid), Annotations: map[string]string{netattach.NetworksAnnotation: c.networks},
	}}, nil
}

// Definition implements kube.Definitions.
func (c cached) Definition(_ context.Context, _, name string) (*netattach.Definition, error) {
	if def, ok := c.definitions[name]; ok {
		return def, nil
	}
	return nil, kube.ErrNotFound
}

// PublishStatus implements Publisher.
func (cached) PublishStatus(context.Context, string, string, string, string) error { return nil }

// Event implements Publisher.
func (cached) Event(context.Context, kube.PodRef, string, string, string) error { return nil }

// NodeEvent implements Publisher.
func (cached) NodeEvent(context.Context, string, string, string) error { return nil }

// serveCached serves, on a socket, an agent with definitions net-0 to net-2 and pods that
// select them. It returns a client of the socket.
func serveCached(b *testing.B) plan.Client {
	b.Helper()
	src := cached{"net-0,net-1,net-2", map[string]*netattach.Definition{}}
	for i := range 3 {
		name := fmt.Sprintf("net-%d", i)
		src.definitions[name] = &netattach.Definition{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       netattach.DefinitionSpec{Config: config(name, "macvlan")},
		}
	}
	log := slog.New(slog.DiscardHandler)
	a := New(Sources{Pods: src, Definitions: src, Publisher: src, Metrics: metrics.New("v1"), calls: newCalls(log)}, log, nil)
	// Not in the benchmark's own directory: the path can be too long for a socket.
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	client := plan.Client{Socket: filepath.Join(dir, "agent.sock")}
	l, err := plan.Listen(dir, client.Socket)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- plan.Serve(ctx, l, a) }()
	b.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return client
}

// BenchmarkAdd asks for the plan of a pod with four networks over the agent's socket,
// and reports that they are attached. Both ends are in this process. The API server
// takes no part in it.
func BenchmarkAdd(b *testing.B) {
	client := serveCached(b)
	req := asking()
	req.Config = []byte(`{"cniVersion":"1.1.0","name":"manifold","type":"manifold","delegates":[{"type":"bridge","name":"cluster"}]}`)
	add := func() {
		p, err := client.Plan(b.Context(), req)
		if err != nil || len(p.Attachments) != 4 {
			b.Fatal(p, err)
		}
		report := plan.Report{Version: plan.Version, Plan: p.Digest(), Verb: "ADD"}
		for _, a := range p.Attachments {
			report.Outcomes = append(report.Outcomes, plan.Outcome{Name: a.Name, IfName: a.IfName, Result: json.RawMessage(
				`{"cniVersion":"1.0.0","interfaces":[{"name":"` + a.IfName + `","mac":"02:00:00:00:00:01","sandbox":"/run/netns/c1"}],"ips":[{"interface":0,"address":"10.1.0.2/24"}]}`)})
		}
		if err := client.Report(b.Context(), report); err != nil {
			b.Fatal(err)
		}
	}
	add() // parses the definitions
	b.ReportAllocs()
	for b.Loop() {
		add()
	}
}
