package podresources

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1alpha1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Names in the tests.
const (
	vfs  = "vendor.example/vfs"
	ours = "uid-new"
	old  = "uid-old"
)

// web is the pod that the tests ask about, with an init container, a sidecar and two
// containers.
func web() Pod {
	return Pod{Namespace: "shop", Name: "web-0", UID: ours, Containers: []Container{
		{Name: "setup", Init: true}, {Name: "proxy", Init: true, Restartable: true}, {Name: "c1"}, {Name: "c2"},
	}}
}

// held returns a container's device.
func held(container, id string) ContainerDevice {
	return ContainerDevice{Container: container, Resource: vfs, ID: id}
}

// entry returns a checkpoint entry with devices without NUMA node.
func entry(uid, container string, ids ...string) checkpoint.Entry {
	return checkpoint.Entry{PodUID: uid, Container: container, Resource: vfs, Devices: []checkpoint.NUMADevices{{Node: checkpoint.NoNUMA, IDs: ids}}}
}

// moment is the state of the sources at one look.
type moment struct {
	live    []ContainerDevice
	liveErr error
	entries []checkpoint.Entry
	memErr  error
}

// script is a Live and a Memory that report one moment after another; the last one
// stays. A read of the checkpoint starts the next moment.
type script struct {
	t       testing.TB
	moments []moment

	mu    sync.Mutex
	at    int // the current moment, from 1
	calls int // calls of the API
}

func (s *script) now() moment { return s.moments[max(0, min(s.at, len(s.moments))-1)] }

// Load implements Memory.
func (s *script) Load() (*checkpoint.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at++
	m := s.now()
	if m.memErr != nil {
		return nil, m.memErr
	}
	return decoded(s.t, m.entries), nil
}

// Get implements Live.
func (s *script) Get(context.Context, PodKey) ([]ContainerDevice, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return s.now().live, s.now().liveErr
}

// List implements Live.
func (s *script) List(ctx context.Context) (map[PodKey][]ContainerDevice, error) {
	d, err := s.Get(ctx, PodKey{})
	if err != nil {
		return nil, err
	}
	return map[PodKey][]ContainerDevice{{"shop", "web-0"}: d}, nil
}

// decoded passes entries through a file as a kubelet writes it.
func decoded(t testing.TB, entries []checkpoint.Entry) *checkpoint.Checkpoint {
	t.Helper()
	raw, err := checkpoint.Encode(entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// show prints an allocation, one device or note per line.
func show(a *Allocation) string {
	if a == nil {
		return "nothing\n"
	}
	var b strings.Builder
	for _, d := range a.Devices {
		fmt.Fprintf(&b, "%s %s in %s by %s", strings.TrimPrefix(d.Resource, "vendor.example/"), d.ID, strings.Join(d.Containers, "+"), d.Source)
		if d.NUMANodes != nil {
			fmt.Fprintf(&b, " node %v", d.NUMANodes)
		}
		if d.PluginIndex >= 0 {
			fmt.Fprintf(&b, " listed at %d", d.PluginIndex)
		}
		b.WriteString("\n")
	}
	for _, n := range a.Notes {
		b.WriteString("note: " + n + "\n")
	}
	return b.String()
}

// serve runs a gRPC server on a socket until the test ends.
func serve(t testing.TB, register func(*grpc.Server)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return socket
}

// resources serves PodResources from functions; a nil function is unimplemented.
type resources struct {
	podresourcesv1.UnimplementedPodResourcesListerServer
	unbounded atomic.Int32 // number of calls without a deadline
	list      func() (*podresourcesv1.ListPodResourcesResponse, error)
	get       func(*podresourcesv1.GetPodResourcesRequest) (*podresourcesv1.GetPodResourcesResponse, error)
}

// List implements the API.
func (r *resources) List(ctx context.Context, in *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	r.check(ctx)
	if r.list == nil {
		return r.UnimplementedPodResourcesListerServer.List(ctx, in)
	}
	return r.list()
}

// Get implements the API.
func (r *resources) Get(ctx context.Context, in *podresourcesv1.GetPodResourcesRequest) (*podresourcesv1.GetPodResourcesResponse, error) {
	r.check(ctx)
	if r.get == nil {
		return r.UnimplementedPodResourcesListerServer.Get(ctx, in)
	}
	return r.get(in)
}

func (r *resources) check(ctx context.Context) {
	if _, ok := ctx.Deadline(); !ok {
		r.unbounded.Add(1)
	}
}

// newClient serves r and returns a client for it.
func newClient(t testing.TB, r *resources) *Client {
	t.Helper()
	c := NewClient(serve(t, func(s *grpc.Server) { podresourcesv1.RegisterPodResourcesListerServer(s, r) }))
	t.Cleanup(func() {
		c.Close()
		if n := r.unbounded.Load(); n > 0 {
			t.Errorf("%d calls could hang for ever", n)
		}
	})
	return c
}

// newPods serves an API and returns a reader for it.
func newPods(t testing.TB, api podsv1alpha1.PodsServer) *Pods {
	t.Helper()
	p := NewPods(serve(t, func(s *grpc.Server) { podsv1alpha1.RegisterPodsServer(s, api) }))
	t.Cleanup(func() { p.Close() })
	return p
}
