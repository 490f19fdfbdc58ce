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
// what is so now. "Ours" is an entry of the pod's UID; "another's" is a device
// whose entries are all of other UIDs.
//
//	API              checkpoint           answer
//	devices          the same are ours    both agree: the normal case
//	devices          others are ours      read both again, once; then the API's,
//	                                      but ErrConflict if one is another's
//	devices          one is another's,    an older pod of the name: asked again,
//	                 none is ours         then ErrOtherPod
//	devices          knows none of them   read both again, once; then the API's:
//	                                      the checkpoint lags
//	devices          unreadable, absent   the API's
//	none, unknown    some are ours        asked again, then the checkpoint's: an
//	or no answer                          empty answer never means free
//	the pod, none    readable, none       nothing is allocated
//	the pod, none    unreadable, absent   asked again, then nothing is allocated
//	unknown or       none, unreadable     asked again, then ErrUnavailable with
//	no answer        or absent            both causes
//	not configured   some are ours        the checkpoint's
//	not configured   readable, none       nothing is allocated
//	devices or none  not configured       the API's
//
// Devices of ordinary init containers stand in the checkpoint alone and are
// added from there; an application container that reuses one becomes a second
// holder of the same [Device]. Without a UID, as with old runtimes, the API
// alone decides. "Asked again" is bounded by [Options].Retry and the caller's
// context. Every answer other than the normal one says why in its Notes.
//
// [Pods] reads whole pods from the kubelet's Pods API.
package podresources

import (
	"errors"
	"time"

	"google.golang.org/grpc/backoff"
)

// Reasons for having no answer, for errors.Is. All but ErrConflict pass by
// themselves: the same question may be answered later.
var (
	// ErrUnavailable: no source can answer now.
	ErrUnavailable = errors.New("allocation sources are not available")
	// ErrPodNotFound: the kubelet does not know the pod, or not yet.
	ErrPodNotFound = errors.New("the kubelet does not know the pod")
	// ErrOtherPod: the kubelet still answers for an older pod of the same name.
	ErrOtherPod = errors.New("the kubelet answers for another pod of the same name")
	// ErrConflict: API and checkpoint contradict each other.
	ErrConflict = errors.New("the kubelet's API and its checkpoint contradict each other")
	// ErrUnimplemented: this kubelet does not have the method.
	ErrUnimplemented = errors.New("not implemented by this kubelet")
	// ErrRateLimited: the kubelet's limit, which all clients of the node share,
	// is reached. [Reader] waits and calls again.
	ErrRateLimited = errors.New("the kubelet's rate limit is reached")
)

// quickBackoff reconnects soon: the kubelet's socket is local.
var quickBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}

// Pod identifies a pod and its containers, init containers first, each as in
// the pod's spec. Without its containers, devices of ordinary init containers
// cannot be told from contradictions.
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
	Resource   string   // for example vendor.example/vfs
	ID         string   // the device plugin's, verbatim
	Containers []string // who holds it, in the pod's order; the kubelet reuses init containers' devices
	NUMANodes  []int64  // nil when unknown
	// PluginIndex is the device's position in the device plugin's own answer to
	// the first of Containers, from 0; -1 when unknown.
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
	// Devices are in the order of their first holder in the pod, then by resource
	// and ID, each once.
	Devices []Device
	Notes   []string // decisions between the sources, a sentence each
}
