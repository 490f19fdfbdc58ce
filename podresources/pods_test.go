package podresources

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podsv1alpha1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// running runs p until the test ends.
func running(t *testing.T, p *Pods) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { p.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
}

// watched starts a fake kubelet with a pod, and a reader that has cached the pod.
func watched(t *testing.T) (*fakekubelet.Kubelet, *Pods, Pod) {
	t.Helper()
	k := node(t, 4)
	web := admit(t, k, "web")
	p := NewPods(k.PodsSocket())
	t.Cleanup(func() { p.Close() })
	running(t, p)
	eventually(t, "first sync", func() (int, bool) { n := len(p.List()); return n, n == 1 })
	return k, p, web
}

func TestPodsFollowTheKubelet(t *testing.T) {
	k, p, web := watched(t)
	got, err := p.Pod(t.Context(), "shop", "web", web.UID)
	if err != nil || got.Annotations["k8s.v1.cni.cncf.io/networks"] != "a" || got.Spec.Containers[0].Name != "c1" {
		t.Fatalf("Pod = %v, %v", got, err)
	}
	db := admit(t, k, "db")
	eventually(t, "a pod that comes", func() (int, bool) { n := len(p.List()); return n, n == 2 })
	if err := k.DeletePod(types.UID(web.UID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod that goes", func() (int, bool) { n := len(p.List()); return n, n == 1 })
	if _, err := p.Pod(t.Context(), "shop", "db", db.UID); err != nil {
		t.Error(err)
	}
	if n := k.Calls()["GetPod"]; n != 0 {
		t.Errorf("%d calls for what is cached", n)
	}
	if _, err := p.Pod(t.Context(), "shop", "web", web.UID); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("a pod that has gone: %v", err)
	}
}

func TestPodsAcrossKubeletRestart(t *testing.T) {
	k, p, web := watched(t)
	for _, phase := range []fakekubelet.Phase{fakekubelet.Down, fakekubelet.Empty} {
		if err := k.SetPhase(phase); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the watch is lost", func() (bool, bool) { lost := !p.follows(); return lost, lost })
		if got, err := p.Pod(t.Context(), "shop", "web", web.UID); err != nil || string(got.UID) != web.UID {
			t.Errorf("phase %d: the cached pod: %v, %v", phase, got, err)
		}
		if _, err := p.Pod(t.Context(), "shop", "new", "uid-unseen"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("phase %d: a pod that is not cached: %v", phase, err)
		}
		if len(p.List()) != 1 {
			t.Errorf("phase %d: %v", phase, p.List())
		}
	}
	if err := k.SetPhase(fakekubelet.Normal); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the watch is back", func() (bool, bool) { f := p.follows(); return f, f })
}

// follows reports whether the cache is in step with the kubelet.
func (p *Pods) follows() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

func TestPodsWithoutCache(t *testing.T) {
	k := node(t, 2)
	web := admit(t, k, "web")
	p := NewPods(k.PodsSocket())
	defer p.Close()
	for _, tc := range []struct {
		name, uid string
		err       error
	}{
		{"web", web.UID, nil}, {"web", "", nil}, {"web", "uid-unknown", ErrPodNotFound},
		{"other", web.UID, ErrPodNotFound}, {"other", "", ErrPodNotFound},
	} {
		got, err := p.Pod(t.Context(), "shop", tc.name, tc.uid)
		if !errors.Is(err, tc.err) || (err == nil) != (got != nil) || got != nil && string(got.UID) != web.UID {
			t.Errorf("pod %s of UID %q: %v, %v, want %v", tc.name, tc.uid, got, err, tc.err)
		}
	}
	if len(p.List()) != 0 {
		t.Errorf("cached without Run: %v", p.List())
	}
	if err := k.SetPhase(fakekubelet.Empty); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pod(t.Context(), "shop", "web", web.UID); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a kubelet that is not ready: %v", err)
	}
}

func TestPodsErrors(t *testing.T) {
	older := newPods(t, podsv1alpha1.UnimplementedPodsServer{})
	if _, err := older.Pod(t.Context(), "shop", "web", "u"); !errors.Is(err, ErrUnimplemented) {
		t.Errorf("a kubelet without the API: %v", err)
	}
	closed := NewPods(filepath.Join(t.TempDir(), "s"))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Pod(t.Context(), "shop", "web", "u"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	wrong := newPods(t, &scripted{get: []byte("garbage")})
	if got, err := wrong.Pod(t.Context(), "shop", "web", "u"); err == nil {
		t.Errorf("garbage gives %v", got)
	}
	other := newPods(t, &scripted{get: event(t, podsv1alpha1.EventType_ADDED, "web").GetPod()})
	if got, err := other.Pod(t.Context(), "", "web", "u"); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("a pod of another UID: %v, %v", got, err)
	}
	empty := newPods(t, &scripted{})
	if _, err := empty.Pod(t.Context(), "shop", "web", "u"); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("an empty answer: %v", err)
	}
}

// scripted is a Pods API whose streams send what the test defines.
type scripted struct {
	podsv1alpha1.UnimplementedPodsServer
	get     []byte
	streams [][]*podsv1alpha1.WatchPodsEvent // one per watch; later streams stay open and empty

	mu      sync.Mutex
	watches int
}

// GetPod implements the API.
func (s *scripted) GetPod(context.Context, *podsv1alpha1.GetPodRequest) (*podsv1alpha1.GetPodResponse, error) {
	return &podsv1alpha1.GetPodResponse{Pod: s.get}, nil
}

// WatchPods implements the API.
func (s *scripted) WatchPods(_ *podsv1alpha1.WatchPodsRequest, out grpc.ServerStreamingServer[podsv1alpha1.WatchPodsEvent]) error {
	s.mu.Lock()
	n := s.watches
	s.watches++
	s.mu.Unlock()
	if n >= len(s.streams) {
		<-out.Context().Done()
		return nil
	}
	for _, ev := range s.streams[n] {
		if err := out.Send(ev); err != nil {
			return err
		}
	}
	return status.Error(codes.ResourceExhausted, "watcher is too slow")
}

// event returns an event about a pod whose name is also its UID.
func event(t testing.TB, kind podsv1alpha1.EventType, name string) *podsv1alpha1.WatchPodsEvent {
	t.Helper()
	raw, err := (&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &podsv1alpha1.WatchPodsEvent{Type: kind, Pod: raw}
}

func TestDroppedWatchIsMadeAgain(t *testing.T) {
	const added, modified, deleted = podsv1alpha1.EventType_ADDED, podsv1alpha1.EventType_MODIFIED, podsv1alpha1.EventType_DELETED
	complete := &podsv1alpha1.WatchPodsEvent{Type: podsv1alpha1.EventType_INITIAL_SYNC_COMPLETE}
	garbage := &podsv1alpha1.WatchPodsEvent{Type: added, Pod: []byte("garbage")}
	api := &scripted{streams: [][]*podsv1alpha1.WatchPodsEvent{
		{event(t, added, "a"), garbage, event(t, added, "b"), complete, event(t, modified, "a"), event(t, added, "c")},
		{event(t, added, "d")}, // ends before its sync is complete: it must not count
		{event(t, added, "b"), event(t, added, "e"), event(t, deleted, "e"), complete, event(t, added, "f"), event(t, deleted, "b")},
	}}
	p := newPods(t, api)
	seen := map[string]bool{}
	running(t, p)
	eventually(t, "the third stream", func() (string, bool) {
		var names []string
		for _, pod := range p.List() {
			names = append(names, pod.Name)
		}
		slices.Sort(names)
		got := fmt.Sprint(names)
		seen[got] = true
		return got, got == "[f]"
	})
	if seen["[a b c d]"] || seen["[d]"] {
		t.Errorf("a stream that was not synced counted: %v", seen)
	}
}

func TestTrim(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "u", Labels: map[string]string{"a": "b"},
			Annotations:       map[string]string{"k8s.v1.cni.cncf.io/networks": "a", corev1.LastAppliedConfigAnnotation: "{}"},
			ManagedFields:     []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
			DeletionTimestamp: &metav1.Time{Time: time.Unix(1, 0)},
		},
		Spec: corev1.PodSpec{
			NodeName: "n", HostNetwork: true, Volumes: []corev1.Volume{{Name: "v"}},
			InitContainers: []corev1.Container{{Name: "proxy", Image: "i", RestartPolicy: &always}},
			Containers:     []corev1.Container{{Name: "c1", Image: "i", Env: []corev1.EnvVar{{Name: "E"}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Message: "m"},
	}
	got := Trim(pod)
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "u", Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "a"},
			DeletionTimestamp: &metav1.Time{Time: time.Unix(1, 0)},
		},
		Spec: corev1.PodSpec{
			NodeName: "n", HostNetwork: true,
			InitContainers: []corev1.Container{{Name: "proxy", RestartPolicy: &always}}, Containers: []corev1.Container{{Name: "c1"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if got.String() != want.String() {
		t.Errorf("Trim =\n%v\nwant\n%v", got, want)
	}
	if len(pod.Annotations) != 2 {
		t.Error("the pod itself was changed")
	}
}

func FuzzDecodePod(f *testing.F) {
	raw, err := manifest("web").Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pod, err := decodePod(raw)
		if err != nil {
			return
		}
		// Trimming a trimmed pod changes nothing.
		if again := Trim(pod); again.String() != pod.String() {
			t.Errorf("trimmed twice: %v, once: %v", again, pod)
		}
	})
}
