package fakekubelet

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sort"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// podResources serves PodResources v1.
type podResources struct {
	resv1.UnimplementedPodResourcesListerServer
	k *Kubelet
}

// enter counts a call, applies the rate limit, and hangs when asked to.
func (s *podResources) enter(ctx context.Context, method string) error {
	s.k.mu.Lock()
	s.k.calls[method]++
	hang := s.k.hang
	s.k.mu.Unlock()
	if !s.k.limiter.Allow() {
		return status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return nil
}

// List implements the API.
func (s *podResources) List(ctx context.Context, _ *resv1.ListPodResourcesRequest) (*resv1.ListPodResourcesResponse, error) {
	if err := s.enter(ctx, "List"); err != nil {
		return nil, err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	out := &resv1.ListPodResourcesResponse{}
	if s.k.phase != Normal {
		return out, nil
	}
	for _, pod := range s.k.pods {
		if s.k.shadows[pod.Namespace+"/"+pod.Name] == nil {
			out.PodResources = append(out.PodResources, s.k.resources(pod))
		}
	}
	for _, pod := range s.k.shadows {
		out.PodResources = append(out.PodResources, s.k.resources(pod))
	}
	return out, nil
}

// Get implements the API.
func (s *podResources) Get(ctx context.Context, r *resv1.GetPodResourcesRequest) (*resv1.GetPodResourcesResponse, error) {
	if err := s.enter(ctx, "Get"); err != nil {
		return nil, err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	pod := s.k.shadows[r.GetPodNamespace()+"/"+r.GetPodName()]
	for _, p := range s.k.pods {
		if pod == nil && p.Namespace == r.GetPodNamespace() && p.Name == r.GetPodName() {
			pod = p
		}
	}
	if pod == nil || s.k.phase == Empty {
		return nil, fmt.Errorf("pod %s in namespace %s not found", r.GetPodName(), r.GetPodNamespace())
	}
	return &resv1.GetPodResourcesResponse{PodResources: s.k.resources(pod)}, nil
}

// GetAllocatableResources implements the API.
func (s *podResources) GetAllocatableResources(ctx context.Context, _ *resv1.AllocatableResourcesRequest) (*resv1.AllocatableResourcesResponse, error) {
	if err := s.enter(ctx, "GetAllocatableResources"); err != nil {
		return nil, err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	out := &resv1.AllocatableResourcesResponse{}
	for resource, devices := range s.k.devices {
		for _, d := range devices {
			out.Devices = append(out.Devices, s.k.device(resource, d.ID))
		}
	}
	return out, nil
}

// resources is a pod as the API lists it: restartable init containers and
// containers, each device an entry of its own, in no order that means anything.
func (k *Kubelet) resources(pod *corev1.Pod) *resv1.PodResources {
	out := &resv1.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	for i, c := range append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...) {
		if i < len(pod.Spec.InitContainers) && c.RestartPolicy == nil {
			continue
		}
		list := &resv1.ContainerResources{Name: c.Name}
		for _, e := range k.entries {
			if e.PodUID != string(pod.UID) || e.Container != c.Name {
				continue
			}
			for _, id := range e.IDs() {
				list.Devices = append(list.Devices, k.device(e.Resource, id))
			}
		}
		sort.Slice(list.Devices, func(i, j int) bool { return scatter(list.Devices[i]) < scatter(list.Devices[j]) })
		out.Containers = append(out.Containers, list)
	}
	return out
}

// scatter gives an order unlike any that a reader might rely on.
func scatter(d *resv1.ContainerDevices) uint32 {
	h := fnv.New32a()
	h.Write([]byte(d.GetDeviceIds()[0]))
	return h.Sum32()
}

func (k *Kubelet) device(resource, id string) *resv1.ContainerDevices {
	out := &resv1.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}}
	if node := k.node(resource, id); node != checkpoint.NoNUMA {
		out.Topology = &resv1.TopologyInfo{Nodes: []*resv1.NUMANode{{ID: node}}}
	}
	return out
}

// podsAPI serves Pods v1alpha1.
type podsAPI struct {
	podsv1.UnimplementedPodsServer
	k *Kubelet
}

// ready answers FailedPrecondition while the kubelet's sources are not.
func (s *podsAPI) ready(method string) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.calls[method]++
	if s.k.phase == Empty {
		return status.Error(codes.FailedPrecondition, "pod sources are not ready")
	}
	return nil
}

// ListPods implements the API.
func (s *podsAPI) ListPods(context.Context, *podsv1.ListPodsRequest) (*podsv1.ListPodsResponse, error) {
	if err := s.ready("ListPods"); err != nil {
		return nil, err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	out := &podsv1.ListPodsResponse{}
	for _, pod := range s.k.pods {
		raw, err := pod.Marshal()
		if err != nil {
			return nil, err
		}
		out.Pods = append(out.Pods, raw)
	}
	return out, nil
}

// GetPod implements the API.
func (s *podsAPI) GetPod(_ context.Context, r *podsv1.GetPodRequest) (*podsv1.GetPodResponse, error) {
	if err := s.ready("GetPod"); err != nil {
		return nil, err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	pod := s.k.pods[types.UID(r.GetPodUID())]
	if pod == nil {
		return nil, status.Errorf(codes.NotFound, "pod with UID %s not found", r.GetPodUID())
	}
	raw, err := pod.Marshal()
	return &podsv1.GetPodResponse{Pod: raw}, err
}

// watchBuffer is how many events a watcher may be behind before it is dropped.
const watchBuffer = 64

// WatchPods implements the API: all pods, the end of the first sync, changes.
func (s *podsAPI) WatchPods(_ *podsv1.WatchPodsRequest, stream grpc.ServerStreamingServer[podsv1.WatchPodsEvent]) error {
	if err := s.ready("WatchPods"); err != nil {
		return err
	}
	changes := make(chan *podsv1.WatchPodsEvent, watchBuffer)
	s.k.mu.Lock()
	var first []*podsv1.WatchPodsEvent
	for _, pod := range s.k.pods {
		raw, err := pod.Marshal()
		if err != nil {
			s.k.mu.Unlock()
			return err
		}
		first = append(first, &podsv1.WatchPodsEvent{Type: podsv1.EventType_ADDED, Pod: raw})
	}
	s.k.watchers[changes] = true
	s.k.mu.Unlock()
	defer func() {
		s.k.mu.Lock()
		delete(s.k.watchers, changes)
		s.k.mu.Unlock()
	}()
	for _, ev := range append(first, &podsv1.WatchPodsEvent{Type: podsv1.EventType_INITIAL_SYNC_COMPLETE}) {
		if err := stream.Send(ev); err != nil {
			return err
		}
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case ev, ok := <-changes:
			if !ok {
				return status.Error(codes.ResourceExhausted, "watcher is too slow")
			}
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
}

// tell sends a change to all watchers and drops those that are too slow.
func (k *Kubelet) tell(kind podsv1.EventType, pod *corev1.Pod) error {
	raw, err := pod.Marshal()
	if err != nil {
		return err
	}
	for w := range k.watchers {
		select {
		case w <- &podsv1.WatchPodsEvent{Type: kind, Pod: raw}:
		default:
			delete(k.watchers, w)
			close(w)
		}
	}
	return nil
}
