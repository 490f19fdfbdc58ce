package fakekubelet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// registration serves the device plugins' way in.
type registration struct {
	dpv1.UnimplementedRegistrationServer
	k *Kubelet
}

// plugin is a registered device plugin.
type plugin struct {
	conn   *grpc.ClientConn
	client dpv1.DevicePluginClient
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Register implements the API: the kubelet calls the plugin back and follows its
// devices.
func (r *registration) Register(_ context.Context, req *dpv1.RegisterRequest) (*dpv1.Empty, error) {
	if req.GetVersion() != dpv1.Version {
		return nil, status.Errorf(codes.InvalidArgument, "version %q is not %s", req.GetVersion(), dpv1.Version)
	}
	endpoint := filepath.Join(filepath.Dir(r.k.RegistrationSocket()), filepath.Base(req.GetEndpoint()))
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &plugin{conn: conn, client: dpv1.NewDevicePluginClient(conn), cancel: cancel}
	r.k.mu.Lock()
	old := r.k.plugins[req.GetResourceName()]
	r.k.plugins[req.GetResourceName()] = p
	r.k.mu.Unlock()
	if old != nil {
		old.stop()
	}
	p.done.Go(func() { r.k.follow(ctx, req.GetResourceName(), p) })
	return &dpv1.Empty{}, nil
}

// follow keeps the plugin's healthy devices until it ends.
func (k *Kubelet) follow(ctx context.Context, resource string, p *plugin) {
	stream, err := p.client.ListAndWatch(ctx, &dpv1.Empty{}, grpc.WaitForReady(true))
	for err == nil {
		var resp *dpv1.ListAndWatchResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		var devices []Device
		for _, d := range resp.GetDevices() {
			if d.GetHealth() != dpv1.Healthy {
				continue
			}
			node := int64(checkpoint.NoNUMA)
			if nodes := d.GetTopology().GetNodes(); len(nodes) > 0 {
				node = nodes[0].GetID()
			}
			devices = append(devices, Device{ID: d.GetID(), NUMA: node})
		}
		err = k.SetDevices(resource, devices...)
	}
	// The plugin is gone: its devices are no longer offered.
	_ = k.SetDevices(resource)
}

func (p *plugin) stop() {
	p.cancel()
	p.done.Wait()
	_ = p.conn.Close() // nothing is under way any more
}

// answer is the device plugin's answer for a container, encoded as the
// checkpoint keeps it: the registered plugin's own, else that of the built-in
// one, which lists the devices in an order that is not sorted.
func (k *Kubelet) answer(resource string, ids []string) ([]byte, error) {
	resp := &dpv1.ContainerAllocateResponse{}
	if p := k.plugins[resource]; p != nil {
		all, err := p.client.Allocate(context.Background(), &dpv1.AllocateRequest{
			ContainerRequests: []*dpv1.ContainerAllocateRequest{{DevicesIds: ids}},
		})
		if err != nil {
			return nil, fmt.Errorf("allocate %s: %w", resource, err)
		}
		if len(all.GetContainerResponses()) != 1 {
			return nil, fmt.Errorf("allocate %s: %d answers for one container", resource, len(all.GetContainerResponses()))
		}
		resp = all.GetContainerResponses()[0]
	} else {
		order := slices.Clone(ids)
		slices.Reverse(order)
		name := "PCIDEVICE_" + strings.ToUpper(strings.NewReplacer("/", "_", ".", "_", "-", "_").Replace(resource))
		resp.Envs = map[string]string{name: strings.Join(order, ",")}
	}
	return proto.Marshal(resp)
}
