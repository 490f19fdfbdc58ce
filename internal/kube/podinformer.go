package kube

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// PodInformer keeps the pods of one node in memory with one list and one watch, both
// restricted to the node by the API server. It implements [Pods].
//
// Where the API server forbids listing or watching pods, PodInformer asks for each pod
// when it is needed, and client-go keeps trying to list.
type PodInformer struct {
	client   *Client
	informer cache.SharedIndexInformer
	watch    watchState
}

// NewPodInformer returns an informer for the pods bound to node. It does nothing
// before [PodInformer.Run].
func NewPodInformer(client *Client, node string) *PodInformer {
	p := &PodInformer{client: client}
	lw := cache.NewListWatchFromClient(client.core, resourcePods, metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", node))
	p.informer = cache.NewSharedIndexInformer(p.watch.observe(lw), &corev1.Pod{}, 0, nil)
	p.watch.install(p.informer, func(obj any) (any, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			trimPod(pod)
		}
		return obj, nil
	})
	return p
}

// Run lists and watches until ctx ends. It returns when its goroutines have returned.
func (p *PodInformer) Run(ctx context.Context) { p.informer.RunWithContext(ctx) }

// HasSynced reports whether the first list is complete.
func (p *PodInformer) HasSynced() bool { return p.informer.HasSynced() }

// Failing returns the latest failure to list or watch, and since when nothing has
// succeeded. err is nil while the informer hears from the API server. Memory holds the
// state as of since.
func (p *PodInformer) Failing() (since time.Time, err error) { return p.watch.failing() }

// Forbidden returns the API server's refusal to list or watch pods. It is nil once the
// first list has succeeded, even if a later one is refused: then memory still answers.
func (p *PodInformer) Forbidden() error {
	_, err := p.watch.failing()
	if p.HasSynced() || !apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// OnForbidden sets f, which is called once if the API server refuses to list or watch
// pods before it has ever allowed it. Call it before [PodInformer.Run].
func (p *PodInformer) OnForbidden(f func(error)) { p.watch.onForbidden = f }

// Pod implements [Pods] from memory. The informer may lag behind the runtime, so a pod
// that is missing from memory, or has another UID there, is asked for once with a
// direct GET: 404 is [ErrNotFound], every other failure [ErrUnavailable].
func (p *PodInformer) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	if err := checkNames("pod", namespace, name); err != nil {
		return nil, err
	}
	// The store behind an informer reports no errors.
	if obj, ok, _ := p.informer.GetStore().GetByKey(namespace + "/" + name); ok {
		if pod, ok := obj.(*corev1.Pod); ok && uidMatches(pod, uid) {
			return pod, nil
		}
	}
	pod, err := p.client.getPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return checkUID(pod, uid)
}

// trimPod empties every field that planning does not read, in place, and returns pod.
// These stay: name, namespace, UID, annotations except the one that only the kubelet
// can vouch for; names, resources and restart policies of containers; resource claims
// and their statuses; node name, host network, phase.
func trimPod(pod *corev1.Pod) *corev1.Pod {
	delete(pod.Annotations, annotationConfigSource)
	*pod = corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID,
			ResourceVersion: pod.ResourceVersion, // client-go resumes its watch from it
			Annotations:     trimAnnotations(pod.Annotations),
		},
		Spec: corev1.PodSpec{
			NodeName:       pod.Spec.NodeName,
			HostNetwork:    pod.Spec.HostNetwork,
			InitContainers: trimContainers(pod.Spec.InitContainers),
			Containers:     trimContainers(pod.Spec.Containers),
			ResourceClaims: pod.Spec.ResourceClaims,
		},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, ResourceClaimStatuses: pod.Status.ResourceClaimStatuses,
			ExtendedResourceClaimStatus: pod.Status.ExtendedResourceClaimStatus,
		},
	}
	return pod
}

func trimContainers(in []corev1.Container) []corev1.Container {
	if len(in) == 0 {
		return nil
	}
	out := make([]corev1.Container, 0, len(in))
	for i := range in {
		out = append(out, corev1.Container{Name: in[i].Name, Resources: in[i].Resources, RestartPolicy: in[i].RestartPolicy})
	}
	return out
}

// trimAnnotations removes the copy of the whole object that kubectl keeps in an
// annotation.
func trimAnnotations(a map[string]string) map[string]string {
	delete(a, corev1.LastAppliedConfigAnnotation)
	return a
}

// watchState records whether an informer hears from the API server.
type watchState struct {
	onForbidden func(error) // called once if the first answer is a refusal; may be nil

	mu    sync.Mutex
	begun bool      // there was a success, or a refusal that was reported
	since time.Time // of the first failure after the latest success
	err   error     // the latest failure; nil after a success
}

// observe returns lw with the outcome of every list and watch recorded.
func (w *watchState) observe(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContext(ctx, o)
			w.record(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			events, err := lw.WatchWithContext(ctx, o)
			w.record(err)
			return events, err
		},
	}
}

// install sets the transform and the error handler of an informer that has not been
// started. Their errors are ignored: only a started informer returns any.
func (w *watchState) install(i cache.SharedIndexInformer, transform cache.TransformFunc) {
	_ = i.SetTransform(transform)
	_ = i.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		// A watch ends in these ways in ordinary operation: the server closes it, or it
		// is too old to resume.
		if !errors.Is(err, io.EOF) && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			w.record(err)
		}
	})
}

func (w *watchState) record(err error) {
	if w.take(err) && w.onForbidden != nil { // without the lock: onForbidden may call failing
		w.onForbidden(err)
	}
}

// take records an outcome, and reports whether it is a refusal that must be reported.
func (w *watchState) take(err error) (tell bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.err == nil {
		w.since = time.Now()
	}
	w.err = err
	forbidden := apierrors.IsForbidden(err)
	if w.begun || err != nil && !forbidden {
		return false
	}
	w.begun = true
	return forbidden
}

func (w *watchState) failing() (time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		return time.Time{}, nil
	}
	return w.since, w.err
}
