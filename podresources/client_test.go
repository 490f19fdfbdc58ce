package podresources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// captured reads a response of a real kubelet.
func captured[M proto.Message](t testing.TB, name string, into M) M {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata/two-numa", name))
	if err == nil {
		err = protojson.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return into
}

// capturedNode serves the responses of a real kubelet, by Get or only by List.
func capturedNode(t testing.TB, withGet bool) *Reader {
	t.Helper()
	api := &resources{list: func() (*podresourcesv1.ListPodResourcesResponse, error) {
		return captured(t, "podresources-list.json", &podresourcesv1.ListPodResourcesResponse{}), nil
	}}
	if withGet {
		api.get = func(r *podresourcesv1.GetPodResourcesRequest) (*podresourcesv1.GetPodResourcesResponse, error) {
			return captured(t, "podresources-get-"+r.GetPodName()+".json", &podresourcesv1.GetPodResourcesResponse{}), nil
		}
	}
	return NewReader(newClient(t, api), checkpoint.NewFile("testdata/two-numa/kubelet_internal_checkpoint"), Options{})
}

func TestCapturedNode(t *testing.T) {
	const both = " by podresources+checkpoint"
	for _, tc := range []struct{ name, uid, want string }{
		{"vf1", "f0d3eb39-1cdd-45b3-a0d3-85b03af37a29", "rig.example/igb_vfs 0000:21:11.4 in c1" + both + " node [0] listed at 0\n"},
		{"vf2", "77e9faa3-7bea-4ed6-ab72-19fcefc568b8", "rig.example/igb_vfs 0000:21:10.6 in c1" + both + " node [0] listed at 0\n" +
			"rig.example/igb_vfs 0000:21:11.0 in c1" + both + " node [0] listed at 1\n"},
		{"vfcc", "fda9741f-df60-4a11-9d85-54a35bd7eb94", "rig.example/igb_vfs 0000:21:10.4 in c1" + both + " node [0] listed at 0\n" +
			"rig.example/igb_vfs 0000:21:10.0 in c2" + both + " node [0] listed at 0\n"},
		{"vfab", "523a1b5c-2ca8-4428-9c61-64dc081d398c", "rig.example/igb_vfs 0000:21:11.2 in c1" + both + " node [0] listed at 0\n" +
			"rig.example/igb_vfs_b 0000:41:10.0 in c1" + both + " node [1] listed at 0\n"},
	} {
		for _, withGet := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/get=%v", tc.name, withGet), func(t *testing.T) {
				a, err := capturedNode(t, withGet).Devices(t.Context(), Pod{
					Namespace: "default", Name: tc.name, UID: tc.uid, Containers: []Container{{Name: "c1"}, {Name: "c2"}},
				}, []string{"rig.example/igb_vfs"})
				if err != nil {
					t.Fatal(err)
				}
				if got := show(a); got != tc.want {
					t.Errorf("got\n%swant\n%s", got, tc.want)
				}
			})
		}
	}
}

func TestClientErrors(t *testing.T) {
	answer := func(err error) *resources {
		return &resources{
			list: func() (*podresourcesv1.ListPodResourcesResponse, error) { return nil, err },
			get: func(*podresourcesv1.GetPodResourcesRequest) (*podresourcesv1.GetPodResourcesResponse, error) {
				return nil, err
			},
		}
	}
	closed := NewClient("/nonexistent")
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	absent := NewClient(filepath.Join(t.TempDir(), "absent"))
	defer absent.Close()
	for name, tc := range map[string]struct {
		client    *Client
		get, list error
	}{
		"as a kubelet answers a pod that it does not find": {newClient(t, answer(errors.New("pod web in namespace shop not found"))), ErrPodNotFound, ErrUnavailable},
		"not found":      {newClient(t, answer(status.Error(codes.NotFound, ""))), ErrPodNotFound, ErrUnavailable},
		"rate limit":     {newClient(t, answer(status.Error(codes.ResourceExhausted, ""))), ErrRateLimited, ErrRateLimited},
		"older kubelet":  {newClient(t, &resources{}), ErrUnimplemented, ErrUnimplemented},
		"socket absent":  {absent, ErrUnavailable, ErrUnavailable},
		"closed":         {closed, ErrUnavailable, ErrUnavailable},
		"internal error": {newClient(t, answer(status.Error(codes.Internal, ""))), ErrUnavailable, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := tc.client.Get(t.Context(), PodKey{"shop", "web"}); !errors.Is(err, tc.get) || d != nil {
				t.Errorf("Get = %v, %v, want %v", d, err, tc.get)
			}
			if d, err := tc.client.List(t.Context()); !errors.Is(err, tc.list) || d != nil {
				t.Errorf("List = %v, %v, want %v", d, err, tc.list)
			}
		})
	}
}

func TestTwoPodsOfOneNameAreBothListed(t *testing.T) {
	one := func(id string) *podresourcesv1.PodResources {
		return &podresourcesv1.PodResources{Name: "web", Namespace: "shop", Containers: []*podresourcesv1.ContainerResources{{
			Name: "c1", Devices: []*podresourcesv1.ContainerDevices{{ResourceName: vfs, DeviceIds: []string{id}}},
		}}}
	}
	c := newClient(t, &resources{list: func() (*podresourcesv1.ListPodResourcesResponse, error) {
		return &podresourcesv1.ListPodResourcesResponse{PodResources: []*podresourcesv1.PodResources{one("a"), nil, one("b")}}, nil
	}})
	pods, err := c.List(t.Context())
	if got := pods[PodKey{"shop", "web"}]; err != nil || len(got) != 2 {
		t.Errorf("List = %v, %v", got, err)
	}
}

// node starts a fake kubelet with n free devices.
func node(t *testing.T, n int) *fakekubelet.Kubelet {
	t.Helper()
	k, err := fakekubelet.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	var devices []fakekubelet.Device
	for i := range n {
		devices = append(devices, fakekubelet.Device{ID: fmt.Sprintf("dev%03d", i), NUMA: int64(i % 2)})
	}
	if err := k.SetDevices(vfs, devices...); err != nil {
		t.Fatal(err)
	}
	return k
}

// admit starts a pod with one container that has one device.
func admit(t *testing.T, k *fakekubelet.Kubelet, name string) Pod {
	t.Helper()
	p, err := k.AddPod(manifest(name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return Pod{Namespace: "shop", Name: name, UID: string(p.UID), Containers: []Container{{Name: "c1"}}}
}

func manifest(name string) *corev1.Pod {
	limits := corev1.ResourceList{vfs: resource.MustParse("1")}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "a"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c1", Resources: corev1.ResourceRequirements{Limits: limits}}}},
	}
}

// readerOf returns a Reader of the fake kubelet.
func readerOf(t *testing.T, k *fakekubelet.Kubelet, o Options) *Reader {
	t.Helper()
	c := NewClient(k.PodResourcesSocket())
	t.Cleanup(func() { c.Close() })
	return NewReader(c, checkpoint.NewFile(k.CheckpointPath()), o)
}

func TestTwoHundredAtOnceStayWithinTheRateLimit(t *testing.T) {
	const pods = 200
	k := node(t, pods)
	var all []Pod
	for i := range pods {
		all = append(all, admit(t, k, fmt.Sprint("web-", i)))
	}
	r := readerOf(t, k, Options{})
	ids := make([]string, pods)
	var asking sync.WaitGroup
	for i := range all {
		asking.Go(func() {
			a, err := r.Devices(t.Context(), all[i], []string{vfs})
			if err != nil || len(a.Devices) != 1 || a.Devices[0].Source != FromBoth {
				t.Errorf("pod %d: %v, %v", i, a, err)
				return
			}
			ids[i] = a.Devices[0].ID
		})
	}
	asking.Wait()
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("device %s is two pods'", id)
		}
		seen[id] = true
	}
	calls := k.Calls()
	if n := calls["Get"] + calls["List"]; n > 10 {
		t.Errorf("%d calls: %v", n, calls)
	}
}

func TestReaderAcrossKubeletRestart(t *testing.T) {
	k := node(t, 1)
	web := admit(t, k, "web")
	r := readerOf(t, k, Options{Retry: time.Millisecond})
	for _, tc := range []struct {
		name   string
		phase  fakekubelet.Phase
		source string
	}{
		{"before", fakekubelet.Normal, FromBoth}, {"down", fakekubelet.Down, FromCheckpoint}, {"empty", fakekubelet.Empty, FromCheckpoint},
		{"only Get answers", fakekubelet.GetOnly, FromBoth}, {"after", fakekubelet.Normal, FromBoth},
	} {
		if err := k.SetPhase(tc.phase); err != nil {
			t.Fatal(err)
		}
		// The pod does not have the absent resource, so the cache cannot answer.
		a := eventually(t, tc.name, func() (*Allocation, bool) {
			a, err := r.Devices(t.Context(), web, []string{vfs, "vendor.example/absent"})
			return a, err == nil && len(a.Devices) == 1 && a.Devices[0].Source == tc.source
		})
		if noted := len(a.Notes) > 0; noted != (tc.source == FromCheckpoint) {
			t.Errorf("%s: notes %q", tc.name, a.Notes)
		}
	}
}

// eventually repeats ask until the answer is right, because reconnecting takes a
// moment.
func eventually[T any](t *testing.T, what string, ask func() (T, bool)) T {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got, ok := ask()
		if ok {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, got)
		}
	}
}

func TestHangingKubeletLeavesTheCheckpoint(t *testing.T) {
	k := node(t, 1)
	web := admit(t, k, "web")
	k.SetHang(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	a, err := readerOf(t, k, Options{}).Devices(ctx, web, []string{vfs})
	if err != nil || len(a.Devices) != 1 || a.Devices[0].Source != FromCheckpoint {
		t.Errorf("Devices = %v, %v", a, err)
	}
	if !strings.Contains(fmt.Sprint(a.Notes), "does not answer") {
		t.Errorf("notes %q", a.Notes)
	}
}

func TestOlderPodOfTheSameName(t *testing.T) {
	k := node(t, 2)
	first, err := k.AddPod(manifest("web"), nil)
	if err != nil {
		t.Fatal(err)
	}
	k.Shadow(first)
	r := readerOf(t, k, Options{Retry: time.Millisecond})
	_, err = r.Devices(t.Context(), Pod{Namespace: "shop", Name: "web", UID: "another", Containers: []Container{{Name: "c1"}}}, []string{vfs})
	if !errors.Is(err, ErrOtherPod) || !strings.Contains(err.Error(), string(first.UID)) {
		t.Errorf("a pod without entries: %v", err)
	}
	if _, err = r.Devices(t.Context(), admit(t, k, "web"), []string{vfs}); !errors.Is(err, ErrConflict) {
		t.Errorf("a pod with entries of its own: %v", err)
	}
}

func TestCacheAnswersOnlyForItsPod(t *testing.T) {
	k := node(t, 2)
	r := readerOf(t, k, Options{Retry: time.Millisecond})
	ask := func(p Pod) string {
		a, err := r.Devices(t.Context(), p, []string{vfs})
		if err != nil || len(a.Devices) != 1 {
			t.Fatalf("Devices = %v, %v", a, err)
		}
		return a.Devices[0].ID
	}
	first := admit(t, k, "web")
	before := ask(first)
	calls := k.Calls()["Get"]
	if again := ask(first); again != before || k.Calls()["Get"] != calls {
		t.Errorf("the same question took a call more, or gave %s", again)
	}
	second := admit(t, k, "web") // a pod of the same name with the other device
	if err := k.DeletePod("00000000-0000-4000-8000-000000000001"); err != nil {
		t.Fatal(err)
	}
	if got := ask(second); got == before {
		t.Errorf("the new pod got %s, the old one's", got)
	}
}

func TestWhatAnOlderAnswerIsTrustedFor(t *testing.T) {
	v := &view{pod: web(), own: []checkpoint.Entry{entry(ours, "setup", "s"), entry(ours, "c1", "a")}}
	for _, tc := range []struct {
		name      string
		live      []ContainerDevice
		resources []string
		want      bool
	}{
		{"all there, ours", []ContainerDevice{held("c1", "a")}, []string{vfs}, true},
		{"nothing wanted", []ContainerDevice{held("c1", "a")}, nil, true},
		{"a wanted resource is missing", []ContainerDevice{held("c1", "a")}, []string{vfs, "vendor.example/other"}, false},
		{"another device", []ContainerDevice{held("c1", "b")}, []string{vfs}, false},
		{"one more", []ContainerDevice{held("c1", "a"), held("c1", "b")}, []string{vfs}, false},
		{"another container", []ContainerDevice{held("c2", "a")}, []string{vfs}, false},
		{"none", nil, nil, false},
	} {
		if got := v.trusts(tc.live, tc.resources); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	// Without the checkpoint of claims, an answer from before the claims were prepared
	// would be given for as long as nobody asks the kubelet about this pod.
	v.pod.Claims, v.claimsErr = []PodClaim{{Name: "nics"}}, checkpoint.ErrFormat
	if v.trusts([]ContainerDevice{held("c1", "a")}, nil) {
		t.Error("trusted without the pod's claims")
	}
	if !v.trusts([]ContainerDevice{held("c1", "a"), inUse("c1", "web-0-nics-abcde", "vf-1")}, nil) {
		t.Error("not trusted with the pod's claims")
	}
	v.claimsErr = nil
	if !v.trusts([]ContainerDevice{held("c1", "a")}, nil) {
		t.Error("not trusted although the checkpoint of claims answers")
	}
	v.own = nil
	if v.trusts([]ContainerDevice{held("c1", "a")}, nil) {
		t.Error("trusted without entries of the UID")
	}
}

func BenchmarkDevicesFromCache(b *testing.B) {
	r := capturedNode(b, false)
	pod := Pod{Namespace: "default", Name: "vf2", UID: "77e9faa3-7bea-4ed6-ab72-19fcefc568b8", Containers: []Container{{Name: "c1"}}}
	for b.Loop() {
		if a, err := r.Devices(b.Context(), pod, []string{"rig.example/igb_vfs"}); err != nil || len(a.Devices) != 2 {
			b.Fatal(a, err)
		}
	}
}
