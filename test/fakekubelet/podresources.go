package fakekubelet

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// podResources serves PodResources v1.
type podResources struct {
	resv1.UnimplementedPodResourcesListerServer
	k *Kubelet
}

// List implements the API: it returns all pods that have not ended. As in a
// kubelet, it also purges allocations of deleted pods, but only in memory.
func (s *podResources) List(context.Context, *resv1.ListPodResourcesRequest) (*resv1.ListPodResourcesResponse, error) {
	s.k.purge()
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	out := &resv1.ListPodResourcesResponse{}
	if k.phase < Normal {
		return out, nil
	}
	for _, uid := range shuffled(k, slices.Sorted(maps.Keys(k.pods))) {
		if pod := k.pods[uid]; active(pod) && k.shadows[nameOf(pod)] == nil {
			out.PodResources = append(out.PodResources, k.podResources(pod, k.entries, k.prepared))
		}
	}
	for _, s := range k.shadows {
		out.PodResources = append(out.PodResources, k.podResources(s.pod, s.entries, s.claims))
	}
	return out, nil
}

// Get implements the API; it finds a pod by namespace and name.
func (s *podResources) Get(_ context.Context, r *resv1.GetPodResourcesRequest) (*resv1.GetPodResourcesResponse, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	name := types.NamespacedName{Namespace: r.GetPodNamespace(), Name: r.GetPodName()}
	pod, entries, claims := k.pods[k.byName[name]], k.entries, k.prepared
	if s := k.shadows[name]; s != nil {
		pod, entries, claims = s.pod, s.entries, s.claims
	}
	if !active(pod) || k.phase < GetOnly {
		// A plain error without a gRPC status: a kubelet answers with code Unknown.
		return nil, fmt.Errorf("pod %s in namespace %s not found", name.Name, name.Namespace)
	}
	return &resv1.GetPodResourcesResponse{PodResources: k.podResources(pod, entries, claims)}, nil
}

// GetAllocatableResources implements the API: it returns all healthy devices,
// including those in use.
func (s *podResources) GetAllocatableResources(context.Context, *resv1.AllocatableResourcesRequest) (*resv1.AllocatableResourcesResponse, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	out := &resv1.AllocatableResourcesResponse{}
	for _, name := range slices.Sorted(maps.Keys(k.resources)) {
		r := k.resources[name]
		for _, id := range r.healthy() {
			nodes := r.devices[id].nodes
			if len(nodes) == 0 {
				nodes = []int64{checkpoint.NoNUMA}
			}
			for _, n := range nodes {
				out.Devices = append(out.Devices, containerDevices(name, n, id))
			}
		}
	}
	out.Devices = shuffled(k, out.Devices)
	return out, nil
}

// podResources describes a pod: its restartable init containers and ordinary
// containers in the order of the spec, each device by itself, shuffled. A device of
// two NUMA nodes is listed once for each. mu is held.
func (k *Kubelet) podResources(pod *corev1.Pod, entries []*entry, claims []*prepared) *resv1.PodResources {
	out := &resv1.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	list := func(container string) {
		c := &resv1.ContainerResources{Name: container, DynamicResources: k.dynamicResources(pod, container, claims)}
		for _, e := range entries {
			if e.podUID != string(pod.UID) || e.container != container {
				continue
			}
			for _, n := range e.devices {
				for _, id := range n.IDs {
					c.Devices = append(c.Devices, containerDevices(e.resource, n.Node, id))
				}
			}
		}
		c.Devices = shuffled(k, c.Devices)
		out.Containers = append(out.Containers, c)
	}
	for i := range pod.Spec.InitContainers {
		if restartable(&pod.Spec.InitContainers[i]) {
			list(pod.Spec.InitContainers[i].Name)
		}
	}
	for i := range pod.Spec.Containers {
		list(pod.Spec.Containers[i].Name)
	}
	return out
}

// containerDevices describes one device on one NUMA node.
func containerDevices(resource string, node int64, id string) *resv1.ContainerDevices {
	out := &resv1.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}}
	if node != checkpoint.NoNUMA {
		out.Topology = &resv1.TopologyInfo{Nodes: []*resv1.NUMANode{{ID: node}}}
	}
	return out
}
