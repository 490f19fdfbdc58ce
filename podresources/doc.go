// Package podresources answers which devices the kubelet allocated to a pod.
//
// Two sources on the node know, and neither is enough by itself. The PodResources
// API ([Client]) says what is true now, but by namespace and name, so that it may
// still answer for an older pod of the same name. It leaves out ordinary init
// containers, its rate limit is shared by all clients, and for some seconds after a
// kubelet restart it lists no pods although pods hold devices. The checkpoint
// (package checkpoint) answers by UID, completely and at once, but it also remembers
// pods long gone.
//
// [Reader] joins them: the checkpoint decides which pod has a device, and the API
// what is true now. "Ours" is an entry of the pod's UID; "another's" is a device
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
// Devices of ordinary init containers are in the checkpoint alone, and are
// added from there; an application container that reuses one becomes a second
// holder of the same [Device]. Without a UID, as with old runtimes, the API
// alone decides. "Asked again" is bounded by [Options].Retry and the caller's
// context. Every answer other than the normal one says why in its Notes.
//
// # Resource claims
//
// Devices of resource claims (Dynamic Resource Allocation) are in the same API and
// in a checkpoint of their own, dra_manager_state, which names the pods that use a
// claim by UID, and the request behind each device. The kubelet adds a pod to it
// before the pod's sandbox starts and removes it after the sandbox is gone, so that
// it says both who has a device and what is true now:
//
//	API              checkpoint           answer
//	devices          claims are ours      the checkpoint's; both, where the API
//	                                      lists them too
//	devices          none is ours         an older pod of the name: asked again,
//	                                      then ErrOtherPod
//	none, no answer  claims are ours      the checkpoint's
//	devices          unreadable, absent   the API's, if the claims are the pod's by
//	                                      their names; others are an older pod's
//	none             none, unreadable     nothing is allocated
//
// Only pods whose spec names claims, or asks for an extended resource, are asked
// about. Neither source knows a claim's device by its address or resource. These
// are attributes that its driver publishes, in files on the node ([Metadata]) and
// in ResourceSlices; [Options].Attributes are asked one after another, and what
// an earlier one says holds:
//
//	attribute                          gives
//	k8s.cni.cncf.io/deviceID           the device's ID
//	resource.kubernetes.io/pciBusID    its ID, where there is no other
//	k8s.cni.cncf.io/resourceName       its resource, unless it stands behind an
//	                                   extended resource, which is its resource
//
// A device without either is listed all the same: [ClaimDevice].Gap says why.
//
// [Pods] reads whole pods from the kubelet's Pods API.
package podresources

import (
	"errors"
	"fmt"
	"strings"
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
	Claims     []PodClaim // in the order of the pod's spec
	// Extended is the claim that the scheduler made for the pod's extended
	// resources, as the pod's status tells of it; nil where it does not. The
	// kubelet's Pods API serves a status without it.
	Extended *ExtendedClaim
}

// PodClaim is an entry of a pod's spec.resourceClaims.
type PodClaim struct {
	Name string // the pod's own name of the claim, which containers refer to
	// Claim is the name of the ResourceClaim object. For one from a template it is
	// generated and may be unknown, empty: the kubelet's Pods API serves a status
	// without it.
	Claim    string
	Template bool // made from a template, for this pod
}

// ExtendedClaim is a claim behind extended resources (resources in a container's
// limits that a DRA driver serves).
type ExtendedClaim struct {
	Claim    string
	Requests []ExtendedRequest
}

// ExtendedRequest says which request of the claim serves a container's resource.
type ExtendedRequest struct{ Container, Resource, Request string }

// Container is a container of a pod. Restartable marks a sidecar: an init
// container that keeps running.
type Container struct {
	Name        string
	Init        bool
	Restartable bool
	Claims      []ContainerClaim
	Resources   []string // all that it requests, sorted: the scheduler numbers them
}

// ContainerClaim is an entry of a container's resources.claims.
type ContainerClaim struct {
	Name    string // of the pod's claim
	Request string // the only request that the container uses; empty for all
}

// Device is a device allocated to a pod.
type Device struct {
	Resource   string   // for example vendor.example/vfs; may be unknown of a claim's, empty
	ID         string   // the device plugin's, verbatim; may be unknown of a claim's, empty
	Containers []string // who holds it, in the pod's order; the kubelet reuses init containers' devices
	NUMANodes  []int64  // nil when unknown
	// PluginIndex is the device's position in the device plugin's own answer to
	// the first of Containers, from 0; -1 when unknown.
	PluginIndex int
	Source      string // FromBoth, FromAPI or FromCheckpoint
	// Claim is set for a device of a resource claim. It is in the list once,
	// however many containers use the claim.
	Claim *ClaimDevice
}

// ClaimDevice is a device of a resource claim. Driver, Pool, Name and ShareID
// identify it.
type ClaimDevice struct {
	Namespace string
	Claim     string // the ResourceClaim's name
	ClaimUID  string // empty when unknown
	// PodClaim is the pod's own name of the claim; empty when unknown, and for the
	// scheduler's claim behind extended resources.
	PodClaim string
	// Requests are the requests of the claim that the device serves, each
	// "request" or "request/subrequest"; nil when unknown.
	Requests []string
	Extended string // the extended resource that it stands behind; else empty
	Driver   string
	Pool     string
	Name     string
	ShareID  string // of a device that is allocated several times; else empty
	// Attributes are those that [Options].Attributes know, without an error.
	Attributes Attributes
	// Gap is why the device has no ID or no resource, ErrUnavailable where that may
	// pass; nil when it has both.
	Gap error
}

// String names the device for people.
func (d *ClaimDevice) String() string {
	s := fmt.Sprintf("device %s of pool %s of driver %s, claim %s/%s", d.Name, d.Pool, d.Driver, d.Namespace, d.Claim)
	if len(d.Requests) > 0 {
		s += " request " + strings.Join(d.Requests, ", ")
	}
	return s
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
	// ClaimsErr is why devices of claims are not in the list although the pod may
	// have some, ErrUnavailable or ErrOtherPod; nil when what is listed is all.
	ClaimsErr error
}
