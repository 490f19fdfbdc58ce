// Package podresources answers which devices the kubelet allocated to a pod.
//
// Two sources on the node know, and neither is enough. The PodResources API
// ([Client]) says what is so now, but by namespace and name, so that it may
// still answer for an older pod of the same name; it leaves out ordinary init
// containers, it is rate-limited for all clients together, and for some seconds
// after a kubelet restart it lists no pods while pods hold devices. The
// checkpoint (package checkpoint) answers by UID, completely and at once, but it
// also remembers pods long gone.
//
// [Reader] joins them: the checkpoint decides whose a device is, the API decides
// what is so now.
//
//	API              checkpoint          answer
//	devices          the same            both agree: the normal case
//	devices          unreadable/absent   the API's
//	devices          knows none of them  the API's: the checkpoint lags
//	devices          another pod's       not ours: asked again, then ErrOtherPod
//	devices          other ones of ours  read again; then the API's unless one of
//	                                     them is another pod's: ErrConflict
//	none, unknown    devices of ours     asked again, then the checkpoint's: an
//	or unreachable                       empty answer never means free
//	the pod, none    none                none allocated
//	unreachable      none or unreadable  ErrUnavailable
//
// Devices of ordinary init containers stand in the checkpoint alone and are
// added from there. [Pods] reads whole pods from the kubelet's Pods API.
package podresources

import (
	"errors"
	"time"

	"google.golang.org/grpc/backoff"
)

// Reasons for having no answer, for errors.Is.
var (
	// ErrUnavailable: no source can answer now; a later try may succeed.
	ErrUnavailable = errors.New("allocation sources are not available")
	// ErrPodNotFound: the kubelet does not know the pod, or not yet.
	ErrPodNotFound = errors.New("the kubelet does not know the pod")
	// ErrOtherPod: the kubelet still answers for an older pod of the same name.
	ErrOtherPod = errors.New("the kubelet answers for another pod of the same name")
	// ErrConflict: API and checkpoint contradict each other.
	ErrConflict = errors.New("the kubelet's API and its checkpoint contradict each other")

	errUnimplemented = errors.New("not implemented by this kubelet")
	errRateLimited   = errors.New("the kubelet's rate limit is reached")
)

// quickBackoff reconnects soon: the kubelet's socket is local.
var quickBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}

// Pod identifies a pod and its containers, init containers first, each as in
// the pod's spec.
type Pod struct {
	Namespace  string
	Name       string
	UID        string // empty with runtimes that do not tell
	Containers []Container
}

// Container is a container of a pod. Restartable marks a sidecar: an init
// container that keeps running.
type Container struct {
	Name        string
	Init        bool
	Restartable bool
}

// Device is a device allocated to a pod.
type Device struct {
	Resource   string
	ID         string   // the device plugin's, verbatim
	Containers []string // who holds it, in the pod's order; the kubelet reuses init containers' devices
	NUMANodes  []int64
	// PluginIndex is the device's position in the device plugin's own answer to
	// its container, -1 when unknown.
	PluginIndex int
	Source      string // FromBoth, FromAPI or FromCheckpoint
}

// Values of Device.Source.
const (
	FromBoth       = "podresources+checkpoint"
	FromAPI        = "podresources"
	FromCheckpoint = "checkpoint"
)

// Allocation is the answer for a pod.
type Allocation struct {
	Devices []Device
	Notes   []string // decisions between the sources, a sentence each
}
