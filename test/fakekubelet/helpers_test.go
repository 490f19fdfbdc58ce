package fakekubelet_test

import (
	"context"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vfs is the resource of most tests.
const vfs = "vendor.example/vfs"

// kubelet is a fake under test with a client for each of its APIs.
type kubelet struct {
	*fakekubelet.Kubelet
	t         testing.TB
	resources resv1.PodResourcesListerClient
	pods      podsv1.PodsClient
	registry  dpv1.RegistrationClient
}

// start starts a kubelet in a directory of its own. Calls are not limited unless
// opts say so.
func start(t testing.TB, opts ...fakekubelet.Option) *kubelet {
	t.Helper()
	// Not TempDir: its path can be too long for a socket.
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return startIn(t, dir, opts...)
}

func startIn(t testing.TB, dir string, opts ...fakekubelet.Option) *kubelet {
	t.Helper()
	k, err := fakekubelet.Start(dir, append([]fakekubelet.Option{fakekubelet.WithRateLimit(1e9, 1e9)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return &kubelet{
		Kubelet: k, t: t,
		resources: resv1.NewPodResourcesListerClient(dial(t, k.PodResourcesSocket())),
		pods:      podsv1.NewPodsClient(dial(t, k.PodsSocket())),
		registry:  dpv1.NewRegistrationClient(dial(t, k.RegistrationSocket())),
	}
}

// dial returns a connection that dials the socket anew for each call, so that no
// call waits for a backoff.
func dial(t testing.TB, socket string) grpc.ClientConnInterface {
	t.Helper()
	return &dialer{t, socket}
}

// dialer opens a connection for each unary call and each stream.
type dialer struct {
	t      testing.TB
	socket string
}

func (d *dialer) conn() *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///kubelet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		}))
	if err != nil {
		d.t.Fatal(err)
	}
	return conn
}

func (d *dialer) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	conn := d.conn()
	defer conn.Close()
	return conn.Invoke(ctx, method, args, reply, opts...)
}

func (d *dialer) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn := d.conn()
	d.t.Cleanup(func() { conn.Close() })
	return conn.NewStream(ctx, desc, method, opts...)
}

// must fails the test on an error.
func (k *kubelet) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// await waits for something that another goroutine is about to do.
func await(t testing.TB, done func() bool) {
	t.Helper()
	for !done() {
		if t.Context().Err() != nil {
			t.Fatal("still waiting")
		}
		runtime.Gosched()
	}
}

// advertise sets built-in devices that belong to no NUMA node.
func (k *kubelet) advertise(resource string, ids ...string) {
	k.t.Helper()
	var devices []fakekubelet.Device
	for _, id := range ids {
		devices = append(devices, fakekubelet.Device{ID: id, NUMA: checkpoint.NoNUMA})
	}
	k.must(k.SetDevices(resource, devices...))
}

// add admits a pod and compares the checkpoint with the actual allocations.
func (k *kubelet) add(pod *corev1.Pod, pins fakekubelet.Pins) *corev1.Pod {
	k.t.Helper()
	pod, err := k.AddPod(pod, pins)
	k.must(err)
	k.checkpointIsTrue()
	return pod
}

// container returns a container that asks for n devices of vfs.
func container(name string, n int) corev1.Container {
	return asking(name, map[string]int{vfs: n})
}

// asking returns a container with limits.
func asking(name string, limits map[string]int) corev1.Container {
	c := corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{}}}
	for r, n := range limits {
		c.Resources.Limits[corev1.ResourceName(r)] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	return c
}

// sidecar makes an init container restartable.
func sidecar(c corev1.Container) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

// podOf returns a pod of namespace default.
func podOf(name string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{Containers: containers}}
}

// withInit sets a pod's init containers.
func withInit(pod *corev1.Pod, init ...corev1.Container) *corev1.Pod {
	pod.Spec.InitContainers = init
	return pod
}

// decoded reads the checkpoint.
func (k *kubelet) decoded() *checkpoint.Checkpoint {
	k.t.Helper()
	raw, err := os.ReadFile(k.CheckpointPath())
	k.must(err)
	c, err := checkpoint.Decode(raw)
	k.must(err)
	return c
}

// checkpointIsTrue compares the entries of each pod in the checkpoint with the
// pod's allocations.
func (k *kubelet) checkpointIsTrue() {
	k.t.Helper()
	c := k.decoded()
	uids := map[string]bool{}
	for _, e := range c.Entries {
		uids[e.PodUID] = true
	}
	for _, p := range k.Pods() {
		uids[string(p.UID)] = true
	}
	for uid := range uids {
		want := map[string]fakekubelet.Allocation{}
		for _, a := range k.Allocations(types.UID(uid)) {
			want[a.Container+" "+a.Resource] = a
		}
		for _, e := range c.Pod(uid) {
			a, held := want[e.Container+" "+e.Resource]
			delete(want, e.Container+" "+e.Resource)
			resp := &dpv1.ContainerAllocateResponse{}
			if err := proto.Unmarshal(e.AllocResp, resp); err != nil || !held ||
				!slices.Equal(a.IDs, unique(e.IDs())) || !proto.Equal(resp, a.Response) {
				k.t.Errorf("checkpoint entry %+v of pod %s is not its allocation %+v (%v)", e, uid, a, err)
			}
		}
		if len(want) > 0 {
			k.t.Errorf("the checkpoint lacks %v of pod %s", want, uid)
		}
	}
}

func unique(ids []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(ids)))
}

// held returns a pod's device IDs of vfs by container.
func (k *kubelet) held(uid types.UID) map[string][]string {
	out := map[string][]string{}
	for _, a := range k.Allocations(uid) {
		out[a.Container] = append(out[a.Container], a.IDs...)
	}
	return out
}

// sameHeld compares two answers of held.
func sameHeld(a, b map[string][]string) bool {
	return maps.EqualFunc(a, b, func(x, y []string) bool { return slices.Equal(x, y) })
}

// listed asks List and returns the device IDs by pod and container.
func (k *kubelet) listed() map[string]map[string][]string {
	k.t.Helper()
	resp, err := k.resources.List(k.t.Context(), &resv1.ListPodResourcesRequest{})
	k.must(err)
	out := map[string]map[string][]string{}
	for _, p := range resp.GetPodResources() {
		if out[p.GetName()] != nil {
			k.t.Errorf("pod %s is listed twice", p.GetName())
		}
		out[p.GetName()] = containersOf(p)
	}
	return out
}

// got asks Get for a pod of namespace default.
func (k *kubelet) got(name string) (map[string][]string, error) {
	resp, err := k.resources.Get(k.t.Context(), &resv1.GetPodResourcesRequest{PodNamespace: "default", PodName: name})
	return containersOf(resp.GetPodResources()), err
}

// containersOf returns the device IDs by container, ascending.
func containersOf(p *resv1.PodResources) map[string][]string {
	out := map[string][]string{}
	for _, c := range p.GetContainers() {
		ids := []string{}
		for _, d := range c.GetDevices() {
			ids = append(ids, d.GetDeviceIds()...)
		}
		slices.Sort(ids)
		out[c.GetName()] = ids
	}
	return out
}
