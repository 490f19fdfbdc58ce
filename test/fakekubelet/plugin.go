package fakekubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Timeouts of a kubelet for a device plugin: to connect to it when it registers,
// and to prepare a container's start.
const (
	dialTimeout     = 10 * time.Second
	preStartTimeout = dpv1.KubeletPreStartContainerRPCTimeoutInSecs * time.Second
)

// registration serves the API on which device plugins register.
type registration struct {
	dpv1.UnimplementedRegistrationServer
	k *Kubelet
}

// endpoint is a device plugin that has registered.
type endpoint struct {
	resource string
	socket   string
	conn     *grpc.ClientConn
	api      dpv1.DevicePluginClient
	opts     *dpv1.DevicePluginOptions
}

// Register implements the API: the kubelet calls the plugin back on the plugin's
// own socket, asks for its options, and follows its devices. Refusals have code
// Unknown, as in a kubelet.
func (s *registration) Register(ctx context.Context, r *dpv1.RegisterRequest) (*dpv1.Empty, error) {
	if !slices.Contains(dpv1.SupportedVersions[:], r.GetVersion()) {
		return nil, fmt.Errorf("device plugin API version %q is not among %q", r.GetVersion(), dpv1.SupportedVersions)
	}
	if err := checkResourceName(r.GetResourceName()); err != nil {
		return nil, err
	}
	ep, err := connect(ctx, r.GetResourceName(), filepath.Join(s.k.DevicePluginDir(), r.GetEndpoint()))
	if err != nil {
		return nil, err
	}
	if err := s.k.register(ep); err != nil {
		return nil, errors.Join(err, ep.conn.Close())
	}
	return &dpv1.Empty{}, nil
}

// connect connects to a device plugin and asks for its options. As in a kubelet,
// the options in the plugin's registration do not count.
func connect(ctx context.Context, resource, socket string) (*endpoint, error) {
	conn, err := grpc.NewClient("passthrough:///"+resource, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to device plugin %s: %w", socket, err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	ep := &endpoint{resource: resource, socket: socket, conn: conn, api: dpv1.NewDevicePluginClient(conn)}
	if ep.opts, err = ep.api.GetDevicePluginOptions(ctx, &dpv1.Empty{}, grpc.WaitForReady(true)); err != nil {
		// A kubelet does not pass on the plugin's status code.
		return nil, errors.Join(status.Errorf(codes.Unknown, "options of device plugin %s: %v", socket, err), conn.Close())
	}
	return ep, nil
}

// register makes the plugin the one that serves its resource. An older plugin on
// another socket stays connected and takes over when this one goes away.
func (k *Kubelet) register(ep *endpoint) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.run == nil {
		return ErrDown
	}
	r := k.resource(ep.resource)
	if slices.ContainsFunc(r.endpoints, func(o *endpoint) bool { return o.socket == ep.socket }) {
		return fmt.Errorf("device plugin %s is connected already", ep.socket)
	}
	r.endpoints = append(r.endpoints, ep)
	r.builtin = false
	ctx := k.run.ctx
	k.run.work.Go(func() { k.follow(ctx, ep) })
	return nil
}

// follow records what a plugin advertises until the plugin or the kubelet stops.
func (k *Kubelet) follow(ctx context.Context, ep *endpoint) {
	stream, err := ep.api.ListAndWatch(ctx, &dpv1.Empty{})
	for err == nil {
		var resp *dpv1.ListAndWatchResponse
		if resp, err = stream.Recv(); err == nil {
			err = k.advertise(ep.resource, resp.GetDevices())
		}
	}
	k.disconnect(ep)
	_ = ep.conn.Close() // no call is under way that could report the error
}

// advertise records a plugin's devices and writes the checkpoint.
func (k *Kubelet) advertise(resource string, devices []*dpv1.Device) error {
	var order []string
	byID := map[string]advertised{}
	for _, d := range devices {
		a := advertised{healthy: d.GetHealth() == dpv1.Healthy}
		for _, n := range d.GetTopology().GetNodes() {
			a.nodes = append(a.nodes, n.GetID())
		}
		if _, twice := byID[d.GetID()]; !twice {
			order = append(order, d.GetID())
		}
		byID[d.GetID()] = a
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.resource(resource).set(order, byID)
	return k.persist()
}

// disconnect forgets a plugin. If no other plugin serves the resource, its devices
// count as unhealthy; the checkpoint shows that when it is next written.
func (k *Kubelet) disconnect(ep *endpoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.resource(ep.resource)
	r.endpoints = slices.DeleteFunc(r.endpoints, func(o *endpoint) bool { return o == ep })
	r.live = r.live && len(r.endpoints) > 0
}

// preferred asks the device plugin, if its options offer it, which free devices go
// best with those already chosen.
func (k *Kubelet) preferred(ctx context.Context, c claim, free, chosen []string) ([]string, error) {
	k.mu.Lock()
	ep := k.resource(c.resource).serving()
	available := shuffled(k, slices.Concat(free, chosen))
	k.mu.Unlock()
	if ep == nil || !ep.opts.GetGetPreferredAllocationAvailable() {
		return nil, nil
	}
	resp, err := ep.api.GetPreferredAllocation(ctx, &dpv1.PreferredAllocationRequest{
		ContainerRequests: []*dpv1.ContainerPreferredAllocationRequest{
			{AvailableDeviceIDs: available, MustIncludeDeviceIDs: chosen, AllocationSize: int32(c.count)},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preferred allocation of %s: %w", c.resource, err)
	}
	if len(resp.GetContainerResponses()) == 0 {
		return nil, nil
	}
	return resp.GetContainerResponses()[0].GetDeviceIDs(), nil
}

// allocate asks the plugin to allocate devices to one container.
func (ep *endpoint) allocate(ctx context.Context, ids []string) (*dpv1.ContainerAllocateResponse, error) {
	resp, err := ep.api.Allocate(ctx, &dpv1.AllocateRequest{ContainerRequests: []*dpv1.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return nil, fmt.Errorf("allocate %q: %w", ids, err)
	}
	if len(resp.GetContainerResponses()) == 0 {
		return nil, fmt.Errorf("allocate %q: the device plugin answers for no container", ids)
	}
	return resp.GetContainerResponses()[0], nil
}

// preStart tells the plugin that a container with these devices is about to start.
func (ep *endpoint) preStart(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, preStartTimeout)
	defer cancel()
	if _, err := ep.api.PreStartContainer(ctx, &dpv1.PreStartContainerRequest{DevicesIds: ids}); err != nil {
		return fmt.Errorf("prepare %q of %s: %w", ids, ep.resource, err)
	}
	return nil
}

// removePluginSockets removes the sockets of device plugins, as a kubelet does when
// it starts, so that plugins notice and register again.
func (k *Kubelet) removePluginSockets() error {
	list, err := os.ReadDir(k.DevicePluginDir())
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Type()&fs.ModeSocket == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(k.DevicePluginDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
