package fakekubelet_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// wantCode fails the test unless err is a gRPC status of this code.
func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestRateLimit uses a limit that never refills, so that only the burst is
// answered, for all clients and methods of an API together. The other API has its
// own limit.
func TestRateLimit(t *testing.T) {
	k := start(t, fakekubelet.WithRateLimit(1e-9, 10))
	var answered, rejected atomic.Int32
	var clients sync.WaitGroup
	for range 5 {
		clients.Go(func() {
			for _, call := range []func() error{
				func() error { _, err := k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{}); return err },
				func() error {
					_, err := k.resources.GetAllocatableResources(t.Context(), &resv1.AllocatableResourcesRequest{})
					return err
				},
				func() error { _, err := k.got("p"); return err },
			} {
				if status.Code(call()) == codes.ResourceExhausted {
					rejected.Add(1)
				} else {
					answered.Add(1)
				}
			}
		})
	}
	clients.Wait()
	if answered.Load() != 10 || rejected.Load() != 5 {
		t.Errorf("%d answered, %d rejected, want 10 and 5", answered.Load(), rejected.Load())
	}
	calls := k.Calls()
	if calls["List"] != 5 || calls["Get"] != 5 || calls["GetAllocatableResources"] != 5 {
		t.Errorf("calls %v, want 5 each", calls)
	}
	for i := range 11 {
		_, err := k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
		if want := map[bool]codes.Code{true: codes.ResourceExhausted, false: codes.OK}[i == 10]; status.Code(err) != want {
			t.Errorf("ListPods %d: %v, want %v", i, err, want)
		}
	}
	// A new process starts with a full burst.
	k.must(k.SetPhase(fakekubelet.Down))
	k.must(k.SetPhase(fakekubelet.Normal))
	_, err := k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{})
	wantCode(t, "List after a restart", err, codes.OK)
}

// TestRealRateLimit proves that the default limit exceeds its burst: clients call
// over one connection until one is rejected.
func TestRealRateLimit(t *testing.T) {
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k, err := fakekubelet.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	conn, err := grpc.NewClient("unix:"+k.PodResourcesSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var rejected atomic.Bool
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			client := resv1.NewPodResourcesListerClient(conn)
			for !rejected.Load() && t.Context().Err() == nil {
				if _, err := client.List(t.Context(), &resv1.ListPodResourcesRequest{}); status.Code(err) == codes.ResourceExhausted {
					rejected.Store(true)
				} else if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	if n := k.Calls()["List"]; n <= 10 {
		t.Errorf("rejected after %d calls, within the burst", n)
	}
}

func TestPodsAPI(t *testing.T) {
	k := start(t)
	pod := podOf("web", container("c1", 0))
	pod.Annotations = map[string]string{"k8s.v1.cni.cncf.io/networks": "a,b"}
	pod = k.add2(pod)
	k.add2(podOf("db", container("c1", 0)))
	list, err := k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
	k.must(err)
	if len(list.GetPods()) != 2 {
		t.Fatalf("%d pods, want 2", len(list.GetPods()))
	}
	resp, err := k.pods.GetPod(t.Context(), &podsv1.GetPodRequest{PodUID: string(pod.UID)})
	k.must(err)
	got := decodePod(t, resp.GetPod())
	if got.Annotations["k8s.v1.cni.cncf.io/networks"] != "a,b" || got.Status.Phase != corev1.PodPending || got.UID != pod.UID {
		t.Errorf("GetPod = %v", got)
	}
	_, err = k.pods.GetPod(t.Context(), &podsv1.GetPodRequest{PodUID: "unknown"})
	wantCode(t, "an unknown pod", err, codes.NotFound)
	for _, p := range []fakekubelet.Phase{fakekubelet.Empty, fakekubelet.Registered} {
		k.must(k.SetPhase(p))
		_, err = k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
		wantCode(t, "ListPods", err, codes.FailedPrecondition)
		_, err = k.pods.GetPod(t.Context(), &podsv1.GetPodRequest{PodUID: string(pod.UID)})
		wantCode(t, "GetPod", err, codes.FailedPrecondition)
		w, err := k.pods.WatchPods(t.Context(), &podsv1.WatchPodsRequest{})
		k.must(err)
		_, err = w.Recv()
		wantCode(t, "WatchPods", err, codes.FailedPrecondition)
	}
	k.must(k.SetPhase(fakekubelet.GetOnly))
	list, err = k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
	if err != nil || len(list.GetPods()) != 2 {
		t.Errorf("ListPods when ready = %v, %v", list, err)
	}
}

// add2 admits a pod without devices, so it does not look at the checkpoint, which
// nothing has written.
func (k *kubelet) add2(pod *corev1.Pod) *corev1.Pod {
	k.t.Helper()
	pod, err := k.AddPod(pod, nil)
	k.must(err)
	return pod
}

func decodePod(t *testing.T, raw []byte) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := pod.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	return pod
}

// next receives an event and describes it.
func next(t *testing.T, w grpc.ServerStreamingClient[podsv1.WatchPodsEvent]) (string, *corev1.Pod) {
	t.Helper()
	ev, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	pod := decodePod(t, ev.GetPod())
	return strings.TrimSpace(ev.GetType().String() + " " + pod.Name), pod
}

func TestWatch(t *testing.T) {
	k := start(t)
	web := k.add2(podOf("web", container("c1", 0)))
	k.add2(podOf("db", container("c1", 0)))
	w, err := k.pods.WatchPods(t.Context(), &podsv1.WatchPodsRequest{})
	k.must(err)
	expect := func(want string) *corev1.Pod {
		t.Helper()
		got, pod := next(t, w)
		if got != want {
			t.Fatalf("event %q, want %q", got, want)
		}
		return pod
	}
	expect("ADDED web")
	expect("ADDED db")
	expect("INITIAL_SYNC_COMPLETE")
	k.add2(podOf("late", container("c1", 0)))
	expect("ADDED late")
	web.Labels = map[string]string{"a": "b"}
	k.must(k.UpdatePod(web))
	if got := expect("MODIFIED web"); got.Labels["a"] != "b" {
		t.Errorf("labels %v", got.Labels)
	}
	k.add2(web)
	expect("MODIFIED web") // admitted again
	k.must(k.DeletePod(web.UID))
	gone := expect("DELETED web")
	if gone.UID != web.UID || gone.Namespace != "default" || len(gone.Spec.Containers) != 0 {
		t.Errorf("a deletion tells %v", gone)
	}
	k.must(k.SetPhase(fakekubelet.Down))
	_, err = w.Recv()
	wantCode(t, "the watch of a kubelet that went", err, codes.Unavailable)
	if n := k.Watchers(); n != 0 {
		t.Errorf("%d watchers left", n)
	}
}

// TestPodIsOnDiskBeforeItShows proves that whoever sees a pod finds its devices in
// the checkpoint.
func TestPodIsOnDiskBeforeItShows(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b", "c", "d", "e", "f", "g", "h")
	w, err := k.pods.WatchPods(t.Context(), &podsv1.WatchPodsRequest{})
	k.must(err)
	next(t, w)
	var adding sync.WaitGroup
	adding.Go(func() {
		for _, name := range []string{"p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"} {
			k.add(podOf(name, container("c1", 1)), nil)
		}
	})
	for range 8 {
		_, pod := next(t, w)
		if n := len(k.decoded().Pod(string(pod.UID))); n != 1 {
			t.Errorf("pod %s shows with %d entries on disk", pod.Name, n)
		}
	}
	adding.Wait()
}

func TestSlowWatcherIsDropped(t *testing.T) {
	k := start(t, fakekubelet.WithWatchBuffer(3))
	pod := podOf("big", container("c1", 0))
	pod.Annotations = map[string]string{"text": strings.Repeat("x", 32<<10)}
	pod = k.add2(pod)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := k.pods.WatchPods(ctx, &podsv1.WatchPodsRequest{})
	k.must(err)
	next(t, w) // it watches, and receives nothing more until it is dropped
	next(t, w)
	for k.Watchers() > 0 {
		k.must(k.UpdatePod(pod))
	}
	for err == nil {
		_, err = w.Recv()
	}
	wantCode(t, "a slow watcher", err, codes.ResourceExhausted)
}

func TestDropWatchers(t *testing.T) {
	k := start(t)
	w, err := k.pods.WatchPods(t.Context(), &podsv1.WatchPodsRequest{})
	k.must(err)
	next(t, w)
	k.add2(podOf("web", container("c1", 0)))
	k.DropWatchers()
	if got, _ := next(t, w); got != "ADDED web" {
		t.Errorf("event %q before the end", got)
	}
	_, err = w.Recv()
	wantCode(t, "a dropped watcher", err, codes.ResourceExhausted)
}

func TestHang(t *testing.T) {
	k := start(t)
	k.SetHang(true)
	k.SetHang(true, "GetPod")
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() {
		_, err := k.resources.List(ctx, &resv1.ListPodResourcesRequest{})
		wantCode(t, "a call that was given up", err, codes.Canceled)
	})
	await(t, func() bool { return k.Calls()["List"] > 0 })
	cancel()
	calls.Wait()
	calls.Go(func() {
		_, err := k.resources.GetAllocatableResources(t.Context(), &resv1.AllocatableResourcesRequest{})
		wantCode(t, "a call that was let go", err, codes.OK)
	})
	await(t, func() bool { return k.Calls()["GetAllocatableResources"] > 0 })
	_, err := k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
	wantCode(t, "another API", err, codes.OK)
	calls.Go(func() {
		_, err := k.pods.GetPod(t.Context(), &podsv1.GetPodRequest{})
		wantCode(t, "a call when the kubelet stops", err, codes.Unavailable)
	})
	k.SetHang(false)
	await(t, func() bool { return k.Calls()["GetPod"] > 0 })
	k.Stop()
	calls.Wait()
}

func TestErrors(t *testing.T) {
	k := start(t)
	k.SetError(status.Error(codes.Unimplemented, "old"), "Get")
	k.SetError(errors.New("broken"), "WatchPods")
	_, err := k.got("p")
	wantCode(t, "Get", err, codes.Unimplemented)
	w, err := k.pods.WatchPods(t.Context(), &podsv1.WatchPodsRequest{})
	k.must(err)
	_, err = w.Recv()
	wantCode(t, "WatchPods", err, codes.Unknown)
	_, err = k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{})
	wantCode(t, "List", err, codes.OK)
	k.SetError(status.Error(codes.Internal, "all"))
	_, err = k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{})
	wantCode(t, "List", err, codes.Internal)
	k.SetError(nil)
	_, err = k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{})
	wantCode(t, "List again", err, codes.OK)
}

func TestShadow(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b", "c")
	old := k.add(podOf("web", container("c1", 1)), pin("c1", "a"))
	end := k.Shadow(old)
	k.must(k.DeletePod(old.UID))
	k.add(podOf("web", container("c1", 1)), pin("c1", "b"))
	k.add(podOf("db", container("c1", 1)), pin("c1", "c"))
	if got, err := k.got("web"); err != nil || !sameHeld(got, map[string][]string{"c1": {"a"}}) {
		t.Errorf("Get = %v, %v, want the old pod's", got, err)
	}
	if got := k.listed(); len(got) != 2 || got["web"]["c1"][0] != "a" || got["db"]["c1"][0] != "c" {
		t.Errorf("List = %v", got)
	}
	end()
	if got, err := k.got("web"); err != nil || got["c1"][0] != "b" {
		t.Errorf("Get = %v, %v, want the new pod's", got, err)
	}
}

// TestTwoPodsOfOneName proves that Get answers for the last of two pods of one
// name, and for neither once one of them is deleted: a kubelet keeps a single index
// by name.
func TestTwoPodsOfOneName(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b")
	first := k.add(podOf("web", container("c1", 1)), pin("c1", "a"))
	k.add(podOf("web", container("c1", 1)), pin("c1", "b"))
	if got, err := k.got("web"); err != nil || got["c1"][0] != "b" {
		t.Errorf("Get = %v, %v", got, err)
	}
	k.must(k.DeletePod(first.UID))
	_, err := k.got("web")
	wantCode(t, "Get", err, codes.Unknown)
	if got := k.listed()["web"]["c1"]; len(got) != 1 || got[0] != "b" {
		t.Errorf("List = %v", got)
	}
}

func TestDamagedCheckpointIsForgottenAtTheNextStart(t *testing.T) {
	for name, damage := range map[string]func(*kubelet) error{
		"truncated": func(k *kubelet) error {
			return k.CorruptCheckpoint(func(raw []byte) []byte { return raw[:len(raw)/2] })
		},
		"removed": func(k *kubelet) error { return errors.Join(k.RemoveCheckpoint(), k.RemoveCheckpoint()) },
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t)
			k.advertise(vfs, "a")
			pod := k.add(podOf("web", container("c1", 1)), nil)
			k.must(damage(k))
			if got, err := k.got("web"); err != nil || got["c1"][0] != "a" {
				t.Errorf("Get = %v, %v while the process lives", got, err)
			}
			if raw, err := os.ReadFile(k.CheckpointPath()); err == nil {
				if _, err := checkpoint.Decode(raw); !errors.Is(err, checkpoint.ErrFormat) {
					t.Errorf("the file decodes: %v", err)
				}
			}
			k.must(k.SetPhase(fakekubelet.Down))
			k.must(k.SetPhase(fakekubelet.Normal))
			if got := k.Allocations(pod.UID); len(got) != 0 {
				t.Errorf("allocations %v", got)
			}
			k.checkpointIsTrue()
		})
	}
	k := start(t)
	if err := k.CorruptCheckpoint(func(raw []byte) []byte { return raw }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("CorruptCheckpoint without one: %v", err)
	}
}

func TestWithoutCheckpointAndPodsAPI(t *testing.T) {
	k := start(t, fakekubelet.WithoutCheckpoint(), fakekubelet.WithoutPodsAPI())
	k.advertise(vfs, "a")
	pod := k.add2(podOf("web", container("c1", 1)))
	k.must(k.SetPhase(fakekubelet.Empty))
	k.must(k.SetPhase(fakekubelet.Normal))
	if got := k.held(pod.UID)["c1"]; len(got) != 1 {
		t.Errorf("holds %v after a restart", got)
	}
	if _, err := os.Stat(k.CheckpointPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a checkpoint: %v", err)
	}
	_, err := k.pods.ListPods(t.Context(), &podsv1.ListPodsRequest{})
	wantCode(t, "ListPods", err, codes.Unavailable)
}

func TestDownRefuses(t *testing.T) {
	k := start(t)
	k.Stop()
	k.Stop()
	for _, socket := range []string{k.PodResourcesSocket(), k.PodsSocket(), k.RegistrationSocket()} {
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket %s: %v", socket, err)
		}
	}
	if _, err := k.AddPod(podOf("p"), nil); !errors.Is(err, fakekubelet.ErrDown) {
		t.Errorf("AddPod: %v", err)
	}
	if _, err := k.AnnouncePod(podOf("p")); !errors.Is(err, fakekubelet.ErrDown) {
		t.Errorf("AnnouncePod: %v", err)
	}
	unknown := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	if err := errors.Join(k.DeletePod("u"), k.UpdatePod(unknown)); !errors.Is(err, fakekubelet.ErrUnknownPod) {
		t.Errorf("unknown pod: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	for _, dir := range []string{file.Name(), t.TempDir() + "/" + strings.Repeat("long", 40)} {
		if k, err := fakekubelet.Start(dir); err == nil {
			k.Stop()
			t.Errorf("started in %s", dir)
		}
	}
}
