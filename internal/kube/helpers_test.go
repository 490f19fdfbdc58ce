package kube

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	uidA = "aaaaaaaa-0000-4000-8000-000000000001"
	uidB = "bbbbbbbb-0000-4000-8000-000000000002"
)

// startServer starts an API server and a client for it that gives up on a request after
// a second.
func startServer(t testing.TB) (*kubetest.Server, *Client) {
	t.Helper()
	srv := kubetest.Start()
	t.Cleanup(srv.Stop)
	return srv, connect(t, srv, time.Second)
}

func connect(t testing.TB, srv *kubetest.Server, timeout time.Duration) *Client {
	t.Helper()
	path, err := srv.Kubeconfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Timeout = timeout
	client, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// run runs an informer until the end of the test or a call of stop.
func run(t testing.TB, informer interface{ Run(context.Context) }) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { informer.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// eventually waits for cond, but fails after a minute.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func newPod(name, uid, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(uid),
			Annotations: map[string]string{netattach.NetworksAnnotation: "net1"},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "registry/image"}}},
	}
}

func newDefinition(name, config string) *netattach.Definition {
	return &netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       netattach.DefinitionSpec{Config: config},
	}
}

// count returns how many requests of that method and path the server got.
func count(srv *kubetest.Server, method, path string) int {
	n := 0
	for _, r := range srv.Requests() {
		if r.Method == method && r.Path == path {
			n++
		}
	}
	return n
}
