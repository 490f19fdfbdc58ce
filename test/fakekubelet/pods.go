package fakekubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// ErrUnknownPod means that the kubelet has no such pod.
var ErrUnknownPod = errors.New("no such pod")

// Allocation is what one container holds of one resource.
type Allocation struct {
	Container string
	Resource  string
	IDs       []string // ascending
	// Response is the device plugin's response, which the container sees.
	Response *dpv1.ContainerAllocateResponse
}

// shadow is an older pod that PodResources still answers for.
type shadow struct {
	pod     *corev1.Pod
	entries []*entry
	claims  []*prepared
}

// AddPod admits a pod: each container gets the devices that its limits ask for,
// either those pinned to it or free ones. The returned pod has a UID, a namespace
// and phase Pending where they were missing. It shows on the APIs once its
// allocation is on disk.
//
// A pod that cannot have its devices ([ErrNoDevices], or a refusal by a device
// plugin) is rejected and never shows. If a claim cannot be prepared ([ErrClaim]),
// or a device plugin asks for PreStartContainer and refuses it, the pod shows and
// is returned along with the error: a kubelet would keep it waiting to start.
//
// A pod that shows already, by [Kubelet.AnnouncePod] or from before a restart, is
// admitted again and keeps what it has.
func (k *Kubelet) AddPod(pod *corev1.Pod, pins Pins) (*corev1.Pod, error) {
	k.admission.Lock()
	defer k.admission.Unlock()
	ctx, err := k.context()
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", pod.Name, err)
	}
	pod, err = k.complete(pod, pins)
	if err != nil {
		return nil, err
	}
	k.setAdmitting(pod.UID)
	err = k.allocatePod(ctx, pod, pins)
	k.setAdmitting("")
	if err != nil {
		return nil, fmt.Errorf("add pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if err := k.show(pod); err != nil {
		return nil, err
	}
	err = k.prepareClaims(pod)
	if err == nil {
		err = k.preStart(ctx, pod)
	}
	if err != nil {
		return pod.DeepCopy(), fmt.Errorf("pod %s/%s cannot start: %w", pod.Namespace, pod.Name, err)
	}
	return pod.DeepCopy(), nil
}

// AnnouncePod lets a pod show before its devices are allocated, as happens for a
// moment in a kubelet. [Kubelet.AddPod] with the returned pod ends that moment.
func (k *Kubelet) AnnouncePod(pod *corev1.Pod) (*corev1.Pod, error) {
	if _, err := k.context(); err != nil {
		return nil, fmt.Errorf("announce pod %s: %w", pod.Name, err)
	}
	pod, err := k.complete(pod, nil)
	if err != nil {
		return nil, err
	}
	return pod.DeepCopy(), k.show(pod)
}

// complete copies a pod, sets the defaults that an API server would, and rejects
// what an API server would reject, as far as devices depend on it.
func (k *Kubelet) complete(pod *corev1.Pod, pins Pins) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	if pod.Name == "" {
		return nil, errors.New("a pod has no name")
	}
	names := sets.New[string]()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == "" || names.Has(c.Name) {
			return nil, fmt.Errorf("pod %s: container name %q is empty or used twice", pod.Name, c.Name)
		}
		names.Insert(c.Name)
		for resource := range pins[c.Name] {
			if _, asks := c.Resources.Limits[corev1.ResourceName(resource)]; !asks {
				return nil, fmt.Errorf("pod %s: container %s has devices of %s pinned but no limit for it", pod.Name, c.Name, resource)
			}
		}
	}
	for container := range pins {
		if !names.Has(container) {
			return nil, fmt.Errorf("pod %s: devices are pinned to container %q, which it does not have", pod.Name, container)
		}
	}
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	if pod.Status.Phase == "" {
		pod.Status.Phase = corev1.PodPending
	}
	if pod.UID == "" {
		k.mu.Lock()
		k.uids++
		pod.UID = types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", k.uids))
		k.mu.Unlock()
	}
	return pod, nil
}

func (k *Kubelet) setAdmitting(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.admitting = uid
}

// show publishes a pod on the APIs.
func (k *Kubelet) show(pod *corev1.Pod) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	kind := podsv1.EventType_ADDED
	if k.pods[pod.UID] != nil {
		kind = podsv1.EventType_MODIFIED
	}
	k.pods[pod.UID] = pod
	k.byName[nameOf(pod)] = pod.UID
	return k.tell(kind, pod)
}

// preStart tells the device plugins that ask for it that containers start.
func (k *Kubelet) preStart(ctx context.Context, pod *corev1.Pod) error {
	type start struct {
		ep  *endpoint
		ids []string
	}
	var starts []start
	k.mu.Lock()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, e := range k.entries {
			ep := k.resource(e.resource).serving()
			if e.podUID == string(pod.UID) && e.container == c.Name && ep != nil && ep.opts.GetPreStartRequired() {
				starts = append(starts, start{ep, shuffled(k, sets.List(e.ids()))})
			}
		}
	}
	k.mu.Unlock()
	for _, s := range starts {
		if err := s.ep.preStart(ctx, s.ids); err != nil {
			return err
		}
	}
	return nil
}

// UpdatePod replaces a pod that shows, found by UID. Its devices stay as they are.
// PodResources no longer lists a pod of phase Succeeded or Failed, which loses its
// devices at the next allocation.
func (k *Kubelet) UpdatePod(pod *corev1.Pod) error {
	pod = pod.DeepCopy()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pods[pod.UID] == nil {
		return fmt.Errorf("update pod %s of UID %s: %w", pod.Name, pod.UID, ErrUnknownPod)
	}
	k.pods[pod.UID] = pod
	return k.tell(podsv1.EventType_MODIFIED, pod)
}

// DeletePod removes a pod. Its allocations stay until the next allocation purges
// them; its claims are unprepared, as after its sandbox is gone. As in a kubelet,
// Get then finds no pod of that name, even if another pod of the same name lives.
func (k *Kubelet) DeletePod(uid types.UID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	pod := k.pods[uid]
	if pod == nil {
		return fmt.Errorf("delete pod of UID %s: %w", uid, ErrUnknownPod)
	}
	delete(k.pods, uid)
	delete(k.byName, nameOf(pod))
	if err := k.unprepareClaims(uid); err != nil {
		return fmt.Errorf("delete pod of UID %s: %w", uid, err)
	}
	// A kubelet reports only name, namespace and UID of a deleted pod.
	return k.tell(podsv1.EventType_DELETED, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}})
}

// Pods returns the pods that show once the kubelet is in phase Normal, by UID.
func (k *Kubelet) Pods() []*corev1.Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*corev1.Pod
	for _, uid := range slices.Sorted(maps.Keys(k.pods)) {
		out = append(out, k.pods[uid].DeepCopy())
	}
	return out
}

// Shadow makes PodResources keep answering for this pod under its name, with the
// devices it has now: what a client sees while an older pod of the same name has
// not ended. The shadow hides other pods of that name, outlives the deletion of its
// own pod, and lasts until end is called.
func (k *Kubelet) Shadow(old *corev1.Pod) (end func()) {
	name, s := nameOf(old), &shadow{pod: old.DeepCopy()}
	k.mu.Lock()
	defer k.mu.Unlock()
	s.claims = slices.Clone(k.prepared)
	for _, e := range k.entries {
		if e.podUID == string(old.UID) {
			s.entries = append(s.entries, e)
		}
	}
	k.shadows[name] = s
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.shadows[name] == s {
			delete(k.shadows, name)
		}
	}
}

// Allocations returns what a pod's containers hold, by container and resource.
// Tests take it as the truth. A deleted pod has allocations until they are purged.
func (k *Kubelet) Allocations(uid types.UID) []Allocation {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Allocation
	for _, e := range k.entries {
		if e.podUID == string(uid) {
			resp := proto.CloneOf(e.resp)
			out = append(out, Allocation{Container: e.container, Resource: e.resource, IDs: sets.List(e.ids()), Response: resp})
		}
	}
	slices.SortFunc(out, func(a, b Allocation) int {
		return slices.Compare([]string{a.Container, a.Resource}, []string{b.Container, b.Resource})
	})
	return out
}

func nameOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}
