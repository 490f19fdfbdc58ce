package fakekubelet

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// podsAPI serves Pods v1alpha1.
type podsAPI struct {
	podsv1.UnimplementedPodsServer
	k *Kubelet
}

// watcher is one WatchPods call; its channel is closed when the watcher is dropped.
type watcher struct {
	events chan *podsv1.WatchPodsEvent
}

// ready fails until the kubelet knows which pods there are; mu is held.
func (k *Kubelet) ready() error {
	if k.phase < GetOnly {
		return status.Error(codes.FailedPrecondition, "Kubelet is initializing")
	}
	return nil
}

// encodedPods returns all pods, by UID, encoded; mu is held.
func (k *Kubelet) encodedPods() ([][]byte, error) {
	var out [][]byte
	for _, uid := range slices.Sorted(maps.Keys(k.pods)) {
		raw, err := encode(k.pods[uid])
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// encode encodes a pod. A kubelet serves the status that it maintains itself,
// without what the scheduler and controllers write there.
func encode(pod *corev1.Pod) ([]byte, error) {
	pod = pod.DeepCopy()
	pod.Status.ResourceClaimStatuses, pod.Status.ExtendedResourceClaimStatus = nil, nil
	raw, err := pod.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return raw, nil
}

// ListPods implements the API.
func (s *podsAPI) ListPods(context.Context, *podsv1.ListPodsRequest) (*podsv1.ListPodsResponse, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if err := s.k.ready(); err != nil {
		return nil, err
	}
	pods, err := s.k.encodedPods()
	if err != nil {
		return nil, err
	}
	return &podsv1.ListPodsResponse{Pods: pods}, nil
}

// GetPod implements the API.
func (s *podsAPI) GetPod(_ context.Context, r *podsv1.GetPodRequest) (*podsv1.GetPodResponse, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if err := s.k.ready(); err != nil {
		return nil, err
	}
	pod := s.k.pods[types.UID(r.GetPodUID())]
	if pod == nil {
		return nil, status.Errorf(codes.NotFound, "pod with UID %s not found", r.GetPodUID())
	}
	raw, err := encode(pod)
	if err != nil {
		return nil, err
	}
	return &podsv1.GetPodResponse{Pod: raw}, nil
}

// WatchPods implements the API: it sends all pods, the end of the initial sync,
// then each change, until the watcher falls too far behind.
func (s *podsAPI) WatchPods(_ *podsv1.WatchPodsRequest, stream grpc.ServerStreamingServer[podsv1.WatchPodsEvent]) error {
	w := &watcher{events: make(chan *podsv1.WatchPodsEvent, s.k.opts.watchBuffer)}
	first, err := s.k.watch(w)
	if err != nil {
		return err
	}
	defer s.k.unwatch(w)
	for _, raw := range first {
		if err := stream.Send(&podsv1.WatchPodsEvent{Type: podsv1.EventType_ADDED, Pod: raw}); err != nil {
			return err
		}
	}
	if err := stream.Send(&podsv1.WatchPodsEvent{Type: podsv1.EventType_INITIAL_SYNC_COMPLETE}); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case event, open := <-w.events:
			if !open {
				return status.Error(codes.ResourceExhausted, "watch client channel closed")
			}
			if err := stream.Send(event); err != nil {
				return err
			}
		}
	}
}

// watch registers a watcher for all later changes and returns the current pods.
func (k *Kubelet) watch(w *watcher) ([][]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.ready(); err != nil {
		return nil, err
	}
	pods, err := k.encodedPods()
	if err != nil {
		return nil, err
	}
	k.watchers[w] = struct{}{}
	return pods, nil
}

func (k *Kubelet) unwatch(w *watcher) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.watchers, w)
}

// tell sends a change to all watchers and drops those that lag too far behind; mu
// is held.
func (k *Kubelet) tell(kind podsv1.EventType, pod *corev1.Pod) error {
	raw, err := encode(pod)
	if err != nil {
		return err
	}
	for w := range k.watchers {
		select {
		case w.events <- &podsv1.WatchPodsEvent{Type: kind, Pod: raw}:
		default:
			k.drop(w)
		}
	}
	return nil
}

// drop drops a watcher; mu is held.
func (k *Kubelet) drop(w *watcher) {
	delete(k.watchers, w)
	close(w.events)
}

// DropWatchers drops all watchers of the Pods API, as if they were too slow: they
// get their pending events, then ResourceExhausted.
func (k *Kubelet) DropWatchers() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for w := range k.watchers {
		k.drop(w)
	}
}

// Watchers returns the number of watchers of the Pods API.
func (k *Kubelet) Watchers() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.watchers)
}
