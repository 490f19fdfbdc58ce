package podresources

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// maxMessage limits the size of a response, in bytes. On a node with 250 pods of eight
// devices each, a List response has less than 1 MiB.
const maxMessage = 16 << 20

// callTime limits one call. A kubelet that hangs must not delay the pod when the
// checkpoint can answer.
const callTime = 3 * time.Second

// ContainerDevice is one device of one container as the kubelet's API lists it. It
// belongs either to a device plugin or to a resource claim.
type ContainerDevice struct {
	Container string
	Resource  string  // for example vendor.example/vfs; empty for a claim's device
	ID        string  // verbatim from the device plugin; empty for a claim's device
	NUMANodes []int64 // nil if the device plugin reports none
	// Claim is set for a device of a resource claim. The kubelet lists all devices of
	// the claim for each container that uses any of them, and does not name requests.
	Claim *ClaimDevice
}

// PodKey identifies a pod in the API.
type PodKey struct{ Namespace, Name string }

// Client calls the kubelet's PodResources API v1 over one persistent connection. It is
// safe for concurrent use.
type Client struct{ kubelet connection }

// NewClient returns a client for the socket, usually
// /var/lib/kubelet/pod-resources/kubelet.sock. The client connects at the first call,
// and again whenever the kubelet has restarted.
func NewClient(socket string) *Client { return &Client{connection{socket: socket}} }

func (c *Client) api() (podresourcesv1.PodResourcesListerClient, error) {
	conn, err := c.kubelet.get()
	if err != nil {
		return nil, err
	}
	return podresourcesv1.NewPodResourcesListerClient(conn), nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.kubelet.close() }

// Get returns the devices of one pod, nil for none. It returns ErrPodNotFound for a pod
// that the kubelet does not find. That proves little: shortly after its restart the
// kubelet finds no pod, and a kubelet whose Get is disabled gives the same answer. It
// returns ErrUnimplemented for a kubelet older than Get.
func (c *Client) Get(ctx context.Context, pod PodKey) ([]ContainerDevice, error) {
	api, err := c.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := api.Get(ctx, &podresourcesv1.GetPodResourcesRequest{PodNamespace: pod.Namespace, PodName: pod.Name})
	if err != nil {
		return nil, callError("Get", err)
	}
	return devicesOf(resp.GetPodResources()), nil
}

// List returns the devices of every pod that the kubelet lists, nil for a pod without
// devices. Shortly after a kubelet restart it succeeds without listing any pod.
func (c *Client) List(ctx context.Context) (map[PodKey][]ContainerDevice, error) {
	api, err := c.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := api.List(ctx, &podresourcesv1.ListPodResourcesRequest{})
	if err != nil {
		return nil, callError("List", err)
	}
	out := make(map[PodKey][]ContainerDevice, len(resp.GetPodResources()))
	for _, p := range resp.GetPodResources() {
		// While an older pod of the same name terminates, both may be listed. Keep
		// both: the checkpoint tells them apart by UID.
		k := PodKey{p.GetNamespace(), p.GetName()}
		out[k] = append(out[k], devicesOf(p)...)
	}
	return out, nil
}

// devicesOf flattens the response for a pod, in the kubelet's order.
func devicesOf(p *podresourcesv1.PodResources) []ContainerDevice {
	var out []ContainerDevice
	for _, c := range p.GetContainers() {
		for _, d := range c.GetDevices() {
			var nodes []int64
			for _, n := range d.GetTopology().GetNodes() {
				nodes = append(nodes, n.GetID())
			}
			for _, id := range d.GetDeviceIds() {
				out = append(out, ContainerDevice{Container: c.GetName(), Resource: d.GetResourceName(), ID: id, NUMANodes: nodes})
			}
		}
		for _, claim := range c.GetDynamicResources() {
			for _, d := range claim.GetClaimResources() {
				out = append(out, ContainerDevice{Container: c.GetName(), Claim: &ClaimDevice{
					Namespace: claim.GetClaimNamespace(), Claim: claim.GetClaimName(),
					Driver: d.GetDriverName(), Pool: d.GetPoolName(), Name: d.GetDeviceName(), ShareID: d.GetShareId(),
				}})
			}
		}
	}
	return out
}

// callError classifies a failed call by its status code. The kubelet answers with
// Unknown for a pod that it does not know, see [Client.Get].
func callError(method string, err error) error {
	kind := ErrUnavailable
	switch status.Code(err) {
	case codes.Unimplemented:
		kind = ErrUnimplemented
	case codes.ResourceExhausted:
		kind = ErrRateLimited
	case codes.Unknown, codes.NotFound:
		if method == "Get" || method == "GetPod" {
			kind = ErrPodNotFound
		}
	}
	return &failure{kind, fmt.Errorf("%s: %w", method, rpcError{err})}
}

// failure is one of the reasons for having no answer, with its cause.
type failure struct{ kind, cause error }

func (e *failure) Error() string { return e.kind.Error() + ": " + e.cause.Error() }

func (e *failure) Unwrap() []error { return []error{e.kind, e.cause} }

// causeOf returns why a source is unavailable, for messages that already say so.
func causeOf(err error) error {
	if f, ok := err.(*failure); ok && f.kind == ErrUnavailable { //nolint:errorlint // the outermost itself is meant
		return f.cause
	}
	return err
}

// rpcError shows the message of a failed call without the frame that gRPC adds.
type rpcError struct{ err error }

func (e rpcError) Error() string { return status.Convert(e.err).Message() }

func (e rpcError) Unwrap() error { return e.err }
