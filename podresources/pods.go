package podresources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podsv1alpha1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// Pods reads whole pods, annotations included, from the kubelet's Pods API (v1alpha1,
// enabled by default from Kubernetes 1.37). It needs no API server and is safe for
// concurrent use.
type Pods struct {
	kubelet connection

	mu     sync.Mutex
	synced bool                   // byUID is in step with the kubelet
	byUID  map[string]*corev1.Pod // trimmed pods
}

// NewPods returns a reader for the socket. Nothing is cached before [Pods.Run].
func NewPods(socket string) *Pods {
	return &Pods{kubelet: connection{socket: socket}, byUID: map[string]*corev1.Pod{}}
}

func (p *Pods) api() (podsv1alpha1.PodsClient, error) {
	conn, err := p.kubelet.get()
	if err != nil {
		return nil, err
	}
	return podsv1alpha1.NewPodsClient(conn), nil
}

// Close closes the connection.
func (p *Pods) Close() error { return p.kubelet.close() }

// Pauses between two watches: they grow from the first to the last while the kubelet
// fails.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Run maintains the cache until ctx ends. It watches the kubelet, and starts another
// watch when the kubelet restarts, is not ready yet, or drops a slow watcher. The cache
// is kept meanwhile, see [Pods.Pod]; the next watch starts with every pod and replaces
// it.
func (p *Pods) Run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		if p.watch(ctx) {
			pause = firstPause
		}
		p.mu.Lock()
		p.synced = false
		p.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// HasSynced reports whether the cache is in step with the kubelet now.
func (p *Pods) HasSynced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// watch follows one stream to its end and reports whether the stream delivered
// anything. The reason for the end does not matter: another watch follows in any case.
func (p *Pods) watch(ctx context.Context) (began bool) {
	api, err := p.api()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.WatchPods(ctx, &podsv1alpha1.WatchPodsRequest{})
	if err != nil {
		return false
	}
	fresh := map[string]*corev1.Pod{} // replaces the cache when the first sync is complete
	for {
		ev, err := stream.Recv()
		if err != nil {
			return began
		}
		began = true
		p.apply(ev, &fresh)
	}
}

// apply applies one event to the cache, or to fresh before the first sync is complete.
func (p *Pods) apply(ev *podsv1alpha1.WatchPodsEvent, fresh *map[string]*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev.GetType() == podsv1alpha1.EventType_INITIAL_SYNC_COMPLETE {
		if *fresh != nil {
			p.byUID = *fresh
		}
		*fresh, p.synced = nil, true
		return
	}
	pod, err := decodePod(ev.GetPod())
	if err != nil {
		return // an undecodable pod must not hide the others; Pod asks for it again
	}
	into := p.byUID
	if *fresh != nil {
		into = *fresh
	}
	if ev.GetType() == podsv1alpha1.EventType_DELETED {
		delete(into, string(pod.UID))
		return
	}
	into[string(pod.UID)] = pod
}

// Pod returns the pod with this UID, from the cache or else from the kubelet. If the
// kubelet does not answer, a pod with this UID in an outdated cache is still the right
// one. Without a UID, the name decides among the pods that are not being deleted.
//
// Pod returns ErrPodNotFound if the kubelet has no such pod or the UID belongs to a pod
// of another name, ErrUnavailable if the kubelet is not ready or does not answer, and
// ErrUnimplemented if it lacks this API. The result is shared: callers must not modify
// it.
func (p *Pods) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	if pod := p.cached(namespace, name, uid, false); pod != nil {
		return pod, nil
	}
	pod, err := p.ask(ctx, namespace, name, uid)
	if errors.Is(err, ErrUnavailable) && uid != "" {
		if pod := p.cached(namespace, name, uid, true); pod != nil {
			return pod, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if pod == nil || pod.Namespace != namespace || pod.Name != name || uid != "" && string(pod.UID) != uid {
		return nil, fmt.Errorf("%w: %s/%s with UID %q", ErrPodNotFound, namespace, name, uid)
	}
	return pod, nil
}

// cached looks up a pod in the cache. If stale is true, it also uses a cache that is
// not in step with the kubelet.
func (p *Pods) cached(namespace, name, uid string, stale bool) *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.synced && !stale {
		return nil
	}
	if uid == "" {
		return named(p.byUID, namespace, name)
	}
	if pod := p.byUID[uid]; pod != nil && pod.Namespace == namespace && pod.Name == name {
		return pod
	}
	return nil
}

func named(pods map[string]*corev1.Pod, namespace, name string) *corev1.Pod {
	for _, pod := range pods {
		if pod.Namespace == namespace && pod.Name == name && pod.DeletionTimestamp == nil {
			return pod
		}
	}
	return nil
}

// ask calls the kubelet: GetPod for a UID, else ListPods.
func (p *Pods) ask(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	api, err := p.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if uid != "" {
		resp, err := api.GetPod(ctx, &podsv1alpha1.GetPodRequest{PodUID: uid})
		if err != nil {
			return nil, callError("GetPod", err)
		}
		return decodePod(resp.GetPod())
	}
	resp, err := api.ListPods(ctx, &podsv1alpha1.ListPodsRequest{})
	if err != nil {
		return nil, callError("ListPods", err)
	}
	all := map[string]*corev1.Pod{}
	for _, raw := range resp.GetPods() {
		if pod, err := decodePod(raw); err == nil {
			all[string(pod.UID)] = pod
		}
	}
	return named(all, namespace, name), nil
}

// List returns the cached pods in no particular order. After the watch is lost, it
// still returns those cached before. Without [Pods.Run] there are none.
func (p *Pods) List() []*corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(p.byUID))
	for _, pod := range p.byUID {
		out = append(out, pod)
	}
	return out
}

// decodePod decodes a protobuf corev1.Pod, as the API sends it, and trims it.
func decodePod(raw []byte) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := pod.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	return Trim(&pod), nil
}

// Trim returns a copy of a pod with only what planning needs, a fraction of the pod's
// memory: identity, annotations, deletion timestamp, node, host network, phase,
// resource claims, and the containers' names, resources and restart policies. It drops
// the annotation in which kubectl keeps the whole manifest. The copy shares the pod's
// values, which must not be modified afterwards.
func Trim(pod *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Annotations: pod.Annotations, DeletionTimestamp: pod.DeletionTimestamp,
	}}
	if _, ok := pod.Annotations[corev1.LastAppliedConfigAnnotation]; ok {
		out.Annotations = maps.Clone(pod.Annotations)
		delete(out.Annotations, corev1.LastAppliedConfigAnnotation)
	}
	out.Spec.NodeName, out.Spec.HostNetwork, out.Status.Phase = pod.Spec.NodeName, pod.Spec.HostNetwork, pod.Status.Phase
	out.Spec.InitContainers = trimContainers(pod.Spec.InitContainers)
	out.Spec.Containers = trimContainers(pod.Spec.Containers)
	out.Spec.ResourceClaims = pod.Spec.ResourceClaims
	out.Status.ResourceClaimStatuses, out.Status.ExtendedResourceClaimStatus = pod.Status.ResourceClaimStatuses, pod.Status.ExtendedResourceClaimStatus
	return out
}

func trimContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range in {
		c := &in[i]
		out = append(out, corev1.Container{Name: c.Name, Resources: c.Resources, RestartPolicy: c.RestartPolicy})
	}
	return out
}
