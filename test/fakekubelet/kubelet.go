// Package fakekubelet is a kubelet as far as a node's programs can tell: it
// serves the real gRPC APIs (PodResources v1 with the kubelet's rate limit, Pods
// v1alpha1, device plugin registration v1beta1) and writes real checkpoint
// files, under a directory laid out like /var/lib/kubelet.
//
// It holds state: pods are admitted, their devices allocated, the checkpoint
// written before a pod becomes visible, entries of deleted pods kept until the
// next allocation, as a real kubelet does. What no real kubelet does on demand
// can be asked for: its restart window ([Kubelet.SetPhase]), hanging calls, an
// older pod of the same name still answered for.
package fakekubelet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// The kubelet's own limit on PodResources, for all clients together.
const (
	realRate  = 100
	realBurst = 10
)

// Phase is a moment in a kubelet's restart.
type Phase int

// The phases: everything answers; sockets are closed; List has no pods and Get
// knows none; Get answers while List is still empty.
const (
	Normal Phase = iota
	Down
	Empty
	GetOnly
)

// Device is a device of a built-in device plugin.
type Device struct {
	ID   string
	NUMA int64 // checkpoint.NoNUMA for none
}

// Allocation is a container's devices of one resource.
type Allocation struct {
	Container string
	Resource  string
	IDs       []string
}

// Kubelet is a running fake. It is safe for concurrent use.
type Kubelet struct {
	dir     string
	limiter *rate.Limiter

	mu       sync.Mutex
	servers  []*grpc.Server
	serving  sync.WaitGroup
	phase    Phase
	hang     chan struct{} // closed to let hanging calls go; nil when none hang
	calls    map[string]int
	devices  map[string][]Device
	plugins  map[string]*plugin
	pods     map[types.UID]*corev1.Pod
	shadows  map[string]*corev1.Pod // by namespace/name: an older pod still answered for
	entries  []checkpoint.Entry
	watchers map[chan *podsv1.WatchPodsEvent]bool
	uids     int
}

// Start serves under dir.
func Start(dir string) (*Kubelet, error) {
	k := &Kubelet{
		dir: dir, limiter: rate.NewLimiter(realRate, realBurst), calls: map[string]int{}, devices: map[string][]Device{},
		plugins: map[string]*plugin{}, pods: map[types.UID]*corev1.Pod{}, shadows: map[string]*corev1.Pod{},
		watchers: map[chan *podsv1.WatchPodsEvent]bool{},
	}
	for _, d := range []string{"pod-resources", "pods", "device-plugins"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := k.writeCheckpoint(); err != nil {
		return nil, err
	}
	return k, k.listen()
}

// PodResourcesSocket is the socket of the PodResources API.
func (k *Kubelet) PodResourcesSocket() string {
	return filepath.Join(k.dir, "pod-resources/kubelet.sock")
}

// PodsSocket is the socket of the Pods API.
func (k *Kubelet) PodsSocket() string { return filepath.Join(k.dir, "pods/kubelet.sock") }

// RegistrationSocket is the socket on which device plugins register.
func (k *Kubelet) RegistrationSocket() string {
	return filepath.Join(k.dir, "device-plugins/kubelet.sock")
}

// CheckpointPath is the device-manager checkpoint.
func (k *Kubelet) CheckpointPath() string {
	return filepath.Join(k.dir, "device-plugins/kubelet_internal_checkpoint")
}

// listen opens the sockets.
func (k *Kubelet) listen() error {
	for path, register := range map[string]func(*grpc.Server){
		k.PodResourcesSocket(): func(s *grpc.Server) { resv1.RegisterPodResourcesListerServer(s, &podResources{k: k}) },
		k.PodsSocket():         func(s *grpc.Server) { podsv1.RegisterPodsServer(s, &podsAPI{k: k}) },
		k.RegistrationSocket(): func(s *grpc.Server) { dpv1.RegisterRegistrationServer(s, &registration{k: k}) },
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		s := grpc.NewServer()
		register(s)
		k.servers = append(k.servers, s)
		k.serving.Go(func() { _ = s.Serve(l) }) // it ends by Stop
	}
	return nil
}

// Stop ends everything that Start began.
func (k *Kubelet) Stop() {
	k.SetHang(false)
	k.mu.Lock()
	servers, plugins := k.servers, k.plugins
	k.servers, k.plugins = nil, map[string]*plugin{}
	k.mu.Unlock()
	for _, s := range servers {
		s.Stop()
	}
	k.serving.Wait()
	for _, p := range plugins {
		p.stop()
	}
}

// SetPhase moves the kubelet through a restart.
func (k *Kubelet) SetPhase(p Phase) error {
	k.mu.Lock()
	was := k.phase
	k.phase = p
	servers := k.servers
	if p == Down {
		k.servers = nil
	}
	k.mu.Unlock()
	if p == Down {
		for _, s := range servers {
			s.Stop()
		}
		k.serving.Wait()
		return nil
	}
	if was == Down {
		return k.listen()
	}
	return nil
}

// SetHang makes PodResources calls hang, or lets them go.
func (k *Kubelet) SetHang(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if on && k.hang == nil {
		k.hang = make(chan struct{})
	}
	if !on && k.hang != nil {
		close(k.hang)
		k.hang = nil
	}
}

// Calls returns how often each method was called, rejected calls included.
func (k *Kubelet) Calls() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]int{}
	for m, n := range k.calls {
		out[m] = n
	}
	return out
}

// SetDevices makes the devices of a built-in device plugin.
func (k *Kubelet) SetDevices(resource string, devices ...Device) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[resource] = devices
	return k.writeCheckpoint()
}

// AddPod admits a pod: each container gets the devices that its limits ask for,
// those that pins names (by container and resource) or else free ones. The pod
// gets a UID when it has none. It is visible once its allocation is on disk.
func (k *Kubelet) AddPod(pod *corev1.Pod, pins map[string]map[string][]string) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	k.mu.Lock()
	defer k.mu.Unlock()
	if pod.UID == "" {
		k.uids++
		pod.UID = types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", k.uids))
	}
	k.entries = slices.DeleteFunc(k.entries, func(e checkpoint.Entry) bool { return k.pods[types.UID(e.PodUID)] == nil })
	entries, err := k.allocate(pod, pins)
	if err != nil {
		return nil, err
	}
	k.entries = append(k.entries, entries...)
	if err := k.writeCheckpoint(); err != nil {
		return nil, err
	}
	k.pods[pod.UID] = pod
	return pod, k.tell(podsv1.EventType_ADDED, pod)
}

// DeletePod removes a pod; its checkpoint entries stay until the next allocation.
func (k *Kubelet) DeletePod(uid types.UID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	pod := k.pods[uid]
	if pod == nil {
		return fmt.Errorf("no pod of UID %s", uid)
	}
	delete(k.pods, uid)
	return k.tell(podsv1.EventType_DELETED, pod)
}

// Shadow makes PodResources go on answering for this pod under its name, though
// a newer pod of the name exists: what happens while the older one terminates.
func (k *Kubelet) Shadow(old *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shadows[old.Namespace+"/"+old.Name] = old
}

// Allocations returns what a pod's containers hold: the truth, for tests.
func (k *Kubelet) Allocations(uid types.UID) []Allocation {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Allocation
	for _, e := range k.entries {
		if e.PodUID == string(uid) {
			out = append(out, Allocation{e.Container, e.Resource, e.IDs()})
		}
	}
	return out
}

// allocate chooses devices for a pod's containers, init containers first. An
// application container takes the devices of ordinary init containers before
// free ones, as the kubelet does.
func (k *Kubelet) allocate(pod *corev1.Pod, pins map[string]map[string][]string) ([]checkpoint.Entry, error) {
	var out []checkpoint.Entry
	reusable := map[string][]string{}
	taken := k.takenIDs()
	all := append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...)
	for i, c := range all {
		plainInit := i < len(pod.Spec.InitContainers) && c.RestartPolicy == nil
		for resource, want := range c.Resources.Limits {
			name := string(resource)
			if !strings.Contains(name, "/") {
				continue
			}
			ids := pins[c.Name][name]
			if ids == nil {
				ids = k.choose(name, int(want.Value()), reusable[name], taken)
			}
			if len(ids) < int(want.Value()) {
				return nil, fmt.Errorf("pod %s/%s container %s: %d of %s wanted, %d are free", pod.Namespace, pod.Name, c.Name, want.Value(), name, len(ids))
			}
			for _, id := range ids {
				taken[name+" "+id] = true
			}
			if plainInit {
				reusable[name] = append(reusable[name], ids...)
			}
			answer, err := k.answer(name, ids)
			if err != nil {
				return nil, err
			}
			out = append(out, checkpoint.Entry{PodUID: string(pod.UID), Container: c.Name, Resource: name, Devices: k.byNode(name, ids), AllocResp: answer})
		}
	}
	return out, nil
}

// takenIDs returns "resource ID" of all devices in use.
func (k *Kubelet) takenIDs() map[string]bool {
	out := map[string]bool{}
	for _, e := range k.entries {
		for _, id := range e.IDs() {
			out[e.Resource+" "+id] = true
		}
	}
	return out
}

// choose picks n devices: reusable ones first, then free ones.
func (k *Kubelet) choose(resource string, n int, reusable []string, taken map[string]bool) []string {
	ids := slices.Clone(reusable[:min(n, len(reusable))])
	for _, d := range k.devices[resource] {
		if len(ids) < n && !taken[resource+" "+d.ID] {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

// byNode groups IDs by their devices' NUMA nodes.
func (k *Kubelet) byNode(resource string, ids []string) []checkpoint.NUMADevices {
	groups := map[int64][]string{}
	for _, id := range ids {
		groups[k.node(resource, id)] = append(groups[k.node(resource, id)], id)
	}
	var out []checkpoint.NUMADevices
	for node, list := range groups {
		out = append(out, checkpoint.NUMADevices{Node: node, IDs: list})
	}
	return out
}

func (k *Kubelet) node(resource, id string) int64 {
	for _, d := range k.devices[resource] {
		if d.ID == id {
			return d.NUMA
		}
	}
	return checkpoint.NoNUMA
}

// writeCheckpoint writes the file as the kubelet does, by renaming.
func (k *Kubelet) writeCheckpoint() error {
	registered := map[string][]string{}
	for r, devices := range k.devices {
		for _, d := range devices {
			registered[r] = append(registered[r], d.ID)
		}
	}
	raw, err := checkpoint.Encode(k.entries, registered)
	if err != nil {
		return err
	}
	tmp := k.CheckpointPath() + ".new"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, k.CheckpointPath())
}
