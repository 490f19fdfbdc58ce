package fakekubelet_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// plugin is a device plugin like any other: it serves its API on a socket beside
// the kubelet's, registers, and advertises the devices that a test gives it.
type plugin struct {
	dpv1.UnimplementedDevicePluginServer
	t      *testing.T
	socket string
	server *grpc.Server
	serve  sync.WaitGroup
	opts   *dpv1.DevicePluginOptions
	lists  chan []*dpv1.Device

	want []string // the answer of GetPreferredAllocation

	mu    sync.Mutex
	calls []string // calls of the kubelet
	fail  error    // the error of Allocate, GetPreferredAllocation and PreStartContainer
	empty bool     // whether they answer for no container
}

// answer sets how the plugin answers from now on.
func (p *plugin) answer(fail error, empty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail, p.empty = fail, empty
}

func (p *plugin) told() (error, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail, p.empty
}

// newPlugin serves a plugin on a socket in the kubelet's plugin directory.
func newPlugin(k *kubelet, t *testing.T, name string) *plugin {
	t.Helper()
	p := &plugin{
		t: t, socket: filepath.Join(k.DevicePluginDir(), name), server: grpc.NewServer(),
		opts: &dpv1.DevicePluginOptions{}, lists: make(chan []*dpv1.Device, 10),
	}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	dpv1.RegisterDevicePluginServer(p.server, p)
	p.serve.Go(func() { _ = p.server.Serve(l) })
	t.Cleanup(p.stop)
	return p
}

func (p *plugin) stop() {
	p.server.Stop()
	p.serve.Wait()
}

// register registers the plugin for a resource.
func (p *plugin) register(k *kubelet, resource string) error {
	_, err := k.registry.Register(p.t.Context(), &dpv1.RegisterRequest{
		Version: dpv1.Version, Endpoint: filepath.Base(p.socket), ResourceName: resource,
	})
	return err
}

func (p *plugin) log(call string, ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, strings.TrimSpace(call+" "+strings.Join(slices.Sorted(slices.Values(ids)), ",")))
}

// asked returns the calls so far and forgets them.
func (p *plugin) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.calls
	p.calls = nil
	return out
}

func (p *plugin) GetDevicePluginOptions(context.Context, *dpv1.Empty) (*dpv1.DevicePluginOptions, error) {
	p.log("options", nil)
	return p.opts, nil
}

func (p *plugin) ListAndWatch(_ *dpv1.Empty, stream grpc.ServerStreamingServer[dpv1.ListAndWatchResponse]) error {
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case list := <-p.lists:
			if err := stream.Send(&dpv1.ListAndWatchResponse{Devices: list}); err != nil {
				return err
			}
		}
	}
}

func (p *plugin) GetPreferredAllocation(_ context.Context, r *dpv1.PreferredAllocationRequest) (*dpv1.PreferredAllocationResponse, error) {
	req := r.GetContainerRequests()[0]
	p.log("prefer must "+strings.Join(req.GetMustIncludeDeviceIDs(), ",")+" of", req.GetAvailableDeviceIDs())
	if fail, empty := p.told(); fail != nil || empty {
		return &dpv1.PreferredAllocationResponse{}, fail
	}
	return &dpv1.PreferredAllocationResponse{ContainerResponses: []*dpv1.ContainerPreferredAllocationResponse{{DeviceIDs: p.want}}}, nil
}

func (p *plugin) Allocate(_ context.Context, r *dpv1.AllocateRequest) (*dpv1.AllocateResponse, error) {
	ids := r.GetContainerRequests()[0].GetDevicesIds()
	p.log("allocate", ids)
	if fail, empty := p.told(); fail != nil || empty {
		return &dpv1.AllocateResponse{}, fail
	}
	return &dpv1.AllocateResponse{ContainerResponses: []*dpv1.ContainerAllocateResponse{{
		Envs:   map[string]string{"IDS": strings.Join(ids, ",")},
		Mounts: []*dpv1.Mount{{HostPath: "/dev/x", ContainerPath: "/dev/x"}},
	}}}, nil
}

func (p *plugin) PreStartContainer(_ context.Context, r *dpv1.PreStartContainerRequest) (*dpv1.PreStartContainerResponse, error) {
	p.log("start", r.GetDevicesIds())
	fail, _ := p.told()
	return &dpv1.PreStartContainerResponse{}, fail
}

// device returns a healthy device on NUMA nodes.
func device(id string, nodes ...int64) *dpv1.Device {
	d := &dpv1.Device{ID: id, Health: dpv1.Healthy}
	if len(nodes) > 0 {
		d.Topology = &dpv1.TopologyInfo{}
	}
	for _, n := range nodes {
		d.Topology.Nodes = append(d.Topology.Nodes, &dpv1.NUMANode{ID: n})
	}
	return d
}

// allocatable waits until there are n allocatable devices and returns them.
func (k *kubelet) allocatable(n int) (out []*resv1.ContainerDevices) {
	k.t.Helper()
	await(k.t, func() bool {
		resp, err := k.resources.GetAllocatableResources(k.t.Context(), &resv1.AllocatableResourcesRequest{})
		k.must(err)
		out = resp.GetDevices()
		return len(out) == n
	})
	return out
}

func TestDevicePlugin(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	k.must(p.register(k, vfs))
	k.allocatable(0)
	p.lists <- []*dpv1.Device{device("a", 0), device("b", 1), {ID: "bad", Health: dpv1.Unhealthy}}
	k.allocatable(2)
	if got := unique(k.decoded().Registered[vfs]); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("registered %q", got)
	}
	pod := k.add(podOf("web", container("c1", 2)), nil)
	if got := p.asked(); !slices.Equal(got, []string{"options", "allocate a,b"}) {
		t.Errorf("the kubelet asked %q", got)
	}
	entry := k.decoded().Pod(string(pod.UID))[0]
	if got := unique(entry.ResponseOrder()); !slices.Equal(got, []string{"a", "b"}) || len(entry.Devices) != 2 {
		t.Errorf("entry %+v", entry)
	}
	// Health and number change; allocations stay.
	p.lists <- []*dpv1.Device{device("b", 1), device("c", 1), device("d")}
	k.allocatable(3)
	if got := k.listed()["web"]["c1"]; !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("List = %v", got)
	}
	other := k.add(podOf("other", container("c1", 1)), pin("c1", "d"))
	if got := k.held(other.UID)["c1"]; !slices.Equal(got, []string{"d"}) {
		t.Errorf("holds %v", got)
	}
	// The plugin stops: nothing can be allocated, but the file is unchanged.
	p.stop()
	k.allocatable(0)
	if got := len(k.decoded().Registered[vfs]); got != 3 {
		t.Errorf("%d registered devices on disk, want 3", got)
	}
	if _, err := k.AddPod(podOf("next", container("c1", 1)), nil); !errors.Is(err, fakekubelet.ErrNoDevices) {
		t.Errorf("error %v, want %v", err, fakekubelet.ErrNoDevices)
	}
}

func TestDevicePluginAcrossKubeletRestart(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	k.must(p.register(k, vfs))
	p.lists <- []*dpv1.Device{device("a"), device("b")}
	k.allocatable(2)
	pod := k.add(podOf("web", container("c1", 1)), nil)
	k.must(k.SetPhase(fakekubelet.Down))
	k.must(k.SetPhase(fakekubelet.Normal))
	if _, err := os.Stat(p.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the plugin's socket is still there: %v", err)
	}
	k.allocatable(0)
	if got := k.listed()["web"]["c1"]; len(got) != 1 {
		t.Errorf("List = %v", got)
	}
	p.stop()
	p = newPlugin(k, t, "p.sock")
	k.must(p.register(k, vfs))
	p.lists <- []*dpv1.Device{device("a"), device("b")}
	k.allocatable(2)
	second := k.add(podOf("second", container("c1", 1)), nil)
	if k.held(second.UID)["c1"][0] == k.held(pod.UID)["c1"][0] {
		t.Error("one device for two pods")
	}
}

func TestPreferredAllocationAndPreStart(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	p.opts = &dpv1.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true}
	p.want = []string{"d", "unknown", "c"}
	k.must(p.register(k, vfs))
	p.lists <- []*dpv1.Device{device("a"), device("b"), device("c"), device("d")}
	k.allocatable(4)
	pod := k.add(withInit(podOf("web", container("c1", 3)), container("i1", 1)), nil)
	if got := k.held(pod.UID); !sameHeld(got, map[string][]string{"i1": {"d"}, "c1": {"a", "c", "d"}}) {
		t.Errorf("holds %v", got)
	}
	want := []string{"options", "prefer must  of a,b,c,d", "allocate d", "prefer must d of a,b,c,d", "allocate a,c,d", "start d", "start a,c,d"}
	if got := p.asked(); !slices.Equal(got, want) {
		t.Errorf("the kubelet asked %q, want %q", got, want)
	}
	p.answer(errors.New("no"), false)
	if _, err := k.AddPod(podOf("second", container("c1", 1)), nil); err == nil || len(k.Pods()) != 1 {
		t.Errorf("admitted without a preference: %v", err)
	}
	p.answer(nil, true)
	if _, err := k.AddPod(podOf("third", container("c1", 1)), nil); err == nil || len(k.Pods()) != 1 {
		t.Errorf("admitted with an answer for no container: %v", err)
	}
}

func TestPreStartRefused(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	p.opts.PreStartRequired = true
	k.must(p.register(k, vfs))
	p.lists <- []*dpv1.Device{device("a")}
	k.allocatable(1)
	k.add(podOf("web", container("c1", 1)), nil)
	p.answer(errors.New("not now"), false)
	pod, err := k.AddPod(k.Pods()[0], nil)
	if err == nil || pod == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("AddPod = %v, %v", pod, err)
	}
	if got := k.listed()["web"]["c1"]; len(got) != 1 {
		t.Errorf("List = %v: the pod waits, it is not gone", got)
	}
}

func TestDeviceOfTwoNodes(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	k.must(p.register(k, vfs))
	p.lists <- []*dpv1.Device{device("a", 0, 1), device("a", 0, 1)} // listed twice by mistake
	if got := k.allocatable(2); got[0].GetTopology().GetNodes()[0].GetID() == got[1].GetTopology().GetNodes()[0].GetID() {
		t.Errorf("allocatable %v", got)
	}
	pod := k.add(podOf("web", container("c1", 1)), nil)
	if got := k.held(pod.UID)["c1"]; !slices.Equal(got, []string{"a"}) {
		t.Errorf("holds %v", got)
	}
	if got := k.listed()["web"]["c1"]; !slices.Equal(got, []string{"a", "a"}) {
		t.Errorf("List = %v, want the device once for each node", got)
	}
	if got := k.decoded().Pod(string(pod.UID))[0].Devices; len(got) != 2 {
		t.Errorf("entry %v", got)
	}
}

// TestSecondPlugin proves that a plugin that registers later serves the resource,
// and that the older one takes over when it stops.
func TestSecondPlugin(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "builtin")
	first, second := newPlugin(k, t, "first.sock"), newPlugin(k, t, "second.sock")
	k.must(first.register(k, vfs))
	if err := k.SetDevices(vfs, fakekubelet.Device{ID: "x"}); err == nil {
		t.Error("built-in devices replace a plugin's")
	}
	k.must(second.register(k, vfs))
	second.lists <- []*dpv1.Device{device("a"), device("b")}
	k.allocatable(2)
	k.add(podOf("web", container("c1", 1)), nil)
	if got := second.asked(); !slices.Equal(got, []string{"options", "allocate a"}) {
		t.Errorf("the kubelet asked %q", got)
	}
	second.stop()
	first.asked()
	await(t, func() bool {
		pod, err := k.AddPod(podOf("next", container("c1", 1)), nil)
		return err == nil && len(k.held(pod.UID)) == 1
	})
	if got := first.asked(); !slices.Equal(got, []string{"allocate b"}) {
		t.Errorf("the kubelet asked %q", got)
	}
	// The built-in devices are gone for good, so nothing returns by itself.
	k.must(k.SetPhase(fakekubelet.Down))
	k.must(k.SetPhase(fakekubelet.Normal))
	k.allocatable(0)
}

func TestRegistrationRefuses(t *testing.T) {
	k := start(t)
	p := newPlugin(k, t, "p.sock")
	k.must(p.register(k, vfs))
	short, cancel := context.WithCancel(t.Context())
	for _, tc := range []struct {
		name                        string
		version, endpoint, resource string
	}{
		{"version", "v1alpha", "p.sock", "vendor.example/other"}, {"resource name", dpv1.Version, "p.sock", "cpu"},
		{"a second time", dpv1.Version, "p.sock", vfs}, {"the kubelet's own socket", dpv1.Version, "kubelet.sock", vfs},
	} {
		_, err := k.registry.Register(t.Context(), &dpv1.RegisterRequest{Version: tc.version, Endpoint: tc.endpoint, ResourceName: tc.resource})
		wantCode(t, tc.name, err, codes.Unknown)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		_, err := k.registry.Register(short, &dpv1.RegisterRequest{Version: dpv1.Version, Endpoint: "absent.sock", ResourceName: vfs})
		wantCode(t, "a socket that is not there", err, codes.Canceled)
	})
	await(t, func() bool { return k.Calls()["Register"] == 6 })
	cancel()
	waiting.Wait()
	if n := k.Calls()["Register"]; n != 6 {
		t.Errorf("%d calls of Register", n)
	}
}
