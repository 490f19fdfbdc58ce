// Package podresources answers which devices the kubelet allocated to a pod.
//
// A node has two sources for this, and neither suffices alone. The PodResources API
// ([Client]) tells the present state, but identifies pods by namespace and name, so it
// may still answer for an older pod of the same name. It omits ordinary init
// containers, all clients share its rate limit, and for some seconds after a kubelet
// restart it lists no pods although pods hold devices. The checkpoint (package
// checkpoint) answers by UID, completely and at once, but also contains pods long gone.
//
// [Reader] joins both: the checkpoint decides which pod has a device, and the API what
// is true now. In the table, a device is "ours" if it has an entry with the pod's UID,
// and "another's" if all of its entries have other UIDs.
//
//	API              checkpoint           answer
//	devices          the same are ours    both agree: the normal case
//	devices          the same are ours,   an older pod of the name is listed as
//	                 others another's     well: those that are ours
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
// Devices of ordinary init containers are only in the checkpoint, and are added from
// there. An application container that reuses such a device becomes a second holder of
// the same [Device]. Without a UID, as with old runtimes, the API alone decides. "Asked
// again" is bounded by [Options].Retry and the caller's context. Every answer other
// than the normal one explains itself in its Notes.
//
// # Resource claims
//
// The API also lists devices of resource claims (Dynamic Resource Allocation). The
// kubelet keeps these in a checkpoint of their own, dra_manager_state, which names the
// UIDs of the pods that use a claim and the requests that each device serves. The
// kubelet adds a pod before the pod's sandbox starts and removes it after the sandbox
// is gone, so this checkpoint tells both who has a device and what is true now:
//
//	API              checkpoint           answer
//	devices          claims are ours      the checkpoint's; FromBoth if the API
//	                                      lists them too
//	devices          none is ours         an older pod of the name: asked again,
//	                                      then ErrOtherPod
//	none, no answer  claims are ours      the checkpoint's
//	none, no answer  none is ours         nothing is allocated
//	devices          unreadable, absent   the API's, if the pod names the claims;
//	                                      other claims are an older pod's
//	none             unreadable, absent   nothing is allocated
//	no answer        unreadable, absent   asked again, then ErrUnavailable if the
//	                                      spec names claims, else nothing
//
// If the checkpoint has no claim of the pod, a pod whose spec neither names claims nor
// requests an extended resource has none. Neither source knows the address or the
// resource of a claim's device. These are attributes that the device's driver
// publishes, in files on the node ([Metadata]) and in ResourceSlices. The sources in
// [Options].Attributes are asked one after another; the first value of an attribute
// counts:
//
//	attribute                          gives
//	k8s.cni.cncf.io/deviceID           the device's ID
//	resource.kubernetes.io/pciBusID    the ID of a device without a deviceID
//	k8s.cni.cncf.io/resourceName       the resource, unless the device backs an
//	                                   extended resource, which is its resource
//
// A device that lacks its ID or resource is listed all the same, with the reason in
// [ClaimDevice].Gap.
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

// Reasons for having no answer, to be matched with errors.Is. All but ErrConflict are
// temporary: the same question may be answered later.
var (
	// ErrUnavailable means that no source can answer now.
	ErrUnavailable = errors.New("allocation sources are not available")
	// ErrPodNotFound means that the kubelet does not know the pod, perhaps not yet.
	ErrPodNotFound = errors.New("the kubelet does not know the pod")
	// ErrOtherPod means that the kubelet still answers for an older pod of the same
	// name.
	ErrOtherPod = errors.New("the kubelet answers for another pod of the same name")
	// ErrConflict means that the API and the checkpoint contradict each other.
	ErrConflict = errors.New("the kubelet's API and its checkpoint contradict each other")
	// ErrUnimplemented means that this kubelet does not have the method.
	ErrUnimplemented = errors.New("not implemented by this kubelet")
	// ErrRateLimited means that the kubelet's limit, shared by all clients on the node,
	// is reached. [Reader] waits and calls again.
	ErrRateLimited = errors.New("the kubelet's rate limit is reached")
)

// quickBackoff reconnects soon, because the kubelet's socket is local.
var quickBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}

// Pod identifies a pod and its containers, init containers first, in the order of the
// pod's spec. Without the containers, devices of ordinary init containers look like
// contradictions.
type Pod struct {
	Namespace  string
	Name       string
	UID        string // empty with runtimes that do not pass it
	Containers []Container
	Claims     []PodClaim // in the order of the pod's spec
	// Extended is the claim that the scheduler created for the pod's extended
	// resources, as the pod's status tells; nil if the status does not tell. The
	// kubelet's Pods API serves a status without it.
	Extended *ExtendedClaim
}

// PodClaim is an entry of a pod's spec.resourceClaims.
type PodClaim struct {
	Name string // the pod's own name for the claim, which its containers refer to
	// Claim is the name of the ResourceClaim object. The name of a claim from a
	// template is generated. It may be unknown, and then Claim is empty: the kubelet's
	// Pods API serves a status without it.
	Claim    string
	Template bool // created from a template, for this pod
}

// ExtendedClaim is a claim that backs extended resources: resources in a container's
// limits that a DRA driver serves.
type ExtendedClaim struct {
	Claim    string
	Requests []ExtendedRequest
}

// ExtendedRequest tells which request of the claim serves a container's resource.
type ExtendedRequest struct{ Container, Resource, Request string }

// Container is a container of a pod. A restartable init container is a sidecar: it
// keeps running.
type Container struct {
	Name        string
	Init        bool
	Restartable bool
	Claims      []ContainerClaim
	Resources   []string // all that it requests, sorted, because the scheduler numbers them in this order
}

// ContainerClaim is an entry of a container's resources.claims.
type ContainerClaim struct {
	Name    string // the pod's name for the claim
	Request string // the only request that the container uses; empty for all
}

// Device is a device allocated to a pod.
type Device struct {
	Resource   string   // for example vendor.example/vfs; may be empty, unknown, for a claim's device
	ID         string   // verbatim from the device plugin; may be empty, unknown, for a claim's device
	Containers []string // the holders, in the pod's order; the kubelet reuses init containers' devices
	NUMANodes  []int64  // ascending; nil when unknown
	// PluginIndex is the device's position, from 0, in the device plugin's response for
	// the first of Containers; -1 if unknown.
	PluginIndex int
	Source      string // FromBoth, FromAPI or FromCheckpoint
	// Claim is set for a device of a resource claim. Such a device is listed once,
	// however many containers use the claim.
	Claim *ClaimDevice
}

// ClaimDevice is a device of a resource claim. Driver, Pool, Name and ShareID together
// identify it.
type ClaimDevice struct {
	Namespace string
	Claim     string // the ResourceClaim's name
	ClaimUID  string // empty when unknown
	// PodClaim is the pod's own name for the claim. It is empty if unknown, and for the
	// scheduler's claim that backs extended resources.
	PodClaim string
	// Requests are the claim's requests that the device serves, each in the form
	// "request" or "request/subrequest"; nil if unknown.
	Requests []string
	Extended string // the extended resource that it backs; else empty
	Driver   string
	Pool     string
	Name     string
	ShareID  string // set if the device can be allocated more than once; else empty
	// Attributes are the merged values from [Options].Attributes; their Err is nil.
	Attributes Attributes
	// Gap tells why the device has no ID or no resource, and wraps ErrUnavailable if
	// that may be temporary. It is nil if the device has both.
	Gap error
}

// String describes the device for people.
func (d *ClaimDevice) String() string {
	s := fmt.Sprintf("device %s of pool %s of driver %s, claim %s/%s", d.Name, d.Pool, d.Driver, d.Namespace, d.Claim)
	if len(d.Requests) > 0 {
		s += " request " + strings.Join(d.Requests, ", ")
	}
	return s
}

// Values of [Device].Source.
const (
	FromBoth       = "podresources+checkpoint"
	FromAPI        = "podresources"
	FromCheckpoint = "checkpoint"
)

// Allocation is the answer for one pod.
type Allocation struct {
	// Devices are sorted by their first holder's place in the pod, then by resource and
	// ID. Each device is listed once.
	Devices []Device
	Notes   []string // decisions between the sources, one sentence each
	// ClaimsErr tells why the list lacks devices of claims although the pod may have
	// some: it wraps ErrUnavailable or ErrOtherPod. It is nil if the list is complete.
	ClaimsErr error
}
