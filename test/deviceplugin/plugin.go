package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Config is the plugin's configuration: devices by resource.
type Config map[string][]Device

// Device is one advertised device.
type Device struct {
	ID   string `json:"id"`
	NUMA int64  `json:"numa"`
	// Info is the content of the device's device-information file. If it is empty, no
	// file is written.
	Info json.RawMessage `json:"info,omitempty"`
}

// readConfig returns one plugin per resource of a configuration file. The plugins write
// device information to infoDir.
func readConfig(path, infoDir string) ([]*plugin, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var out []*plugin
	for resource, devices := range c {
		out = append(out, &plugin{resource: resource, devices: devices, infoDir: infoDir})
	}
	return out, nil
}

// plugin serves one resource.
type plugin struct {
	dpv1.UnimplementedDevicePluginServer
	resource string
	devices  []Device
	infoDir  string
}

// GetDevicePluginOptions implements the API: the plugin needs no optional calls.
func (p *plugin) GetDevicePluginOptions(context.Context, *dpv1.Empty) (*dpv1.DevicePluginOptions, error) {
	return &dpv1.DevicePluginOptions{}, nil
}

// ListAndWatch implements the API: all devices are healthy forever.
func (p *plugin) ListAndWatch(_ *dpv1.Empty, stream dpv1.DevicePlugin_ListAndWatchServer) error {
	resp := &dpv1.ListAndWatchResponse{}
	for _, d := range p.devices {
		resp.Devices = append(resp.Devices, &dpv1.Device{
			ID: d.ID, Health: dpv1.Healthy, Topology: &dpv1.TopologyInfo{Nodes: []*dpv1.NUMANode{{ID: d.NUMA}}},
		})
	}
	if err := stream.Send(resp); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate implements the API.
func (p *plugin) Allocate(_ context.Context, req *dpv1.AllocateRequest) (*dpv1.AllocateResponse, error) {
	resp := &dpv1.AllocateResponse{}
	for _, c := range req.GetContainerRequests() {
		for _, id := range c.GetDevicesIds() {
			if err := p.writeInfo(id); err != nil {
				return nil, err
			}
		}
		resp.ContainerResponses = append(resp.ContainerResponses, &dpv1.ContainerAllocateResponse{
			Envs: map[string]string{p.variable(): strings.Join(c.GetDevicesIds(), ",")},
		})
	}
	return resp, nil
}

// variable returns the name of the environment variable that lists a container's
// devices.
func (p *plugin) variable() string {
	return "PCIDEVICE_" + strings.NewReplacer(".", "_", "/", "_", "-", "_").Replace(strings.ToUpper(p.resource))
}

// writeInfo writes the device-information file of a device that has one.
func (p *plugin) writeInfo(id string) error {
	for _, d := range p.devices {
		if d.ID == id && d.Info != nil {
			if err := os.MkdirAll(p.infoDir, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(p.infoDir, strings.ReplaceAll(p.resource, "/", "-")+"-"+id+"-device.json"), d.Info, 0o600)
		}
	}
	return nil
}

// socket returns the name of the plugin's socket in the kubelet's directory.
func (p *plugin) socket() string { return strings.ReplaceAll(p.resource, "/", "-") + ".sock" }

// kubelet is the name of the kubelet's own socket.
var kubelet = filepath.Base(dpv1.KubeletSocket)

// keepRegistered serves and registers all resources until ctx ends. A kubelet empties its
// directory when it starts, so keepRegistered does it again after each restart.
func keepRegistered(ctx context.Context, dir string, plugins []*plugin, log *slog.Logger) {
	for ctx.Err() == nil {
		servers, err := serve(ctx, dir, plugins)
		if err != nil {
			log.Info("cannot register with the kubelet", "err", err)
		} else {
			log.Info("registered", "resources", len(plugins))
			awaitRestart(ctx, dir, plugins)
		}
		for _, s := range servers {
			s.Stop() // removes the socket, so it must come before the next server listens
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serve starts and registers a server for every plugin. It returns the started servers
// even with an error.
func serve(ctx context.Context, dir string, plugins []*plugin) (servers []*grpc.Server, err error) {
	for _, p := range plugins {
		path := filepath.Join(dir, p.socket())
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return servers, err
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
		if err != nil {
			return servers, err
		}
		s := grpc.NewServer()
		servers = append(servers, s)
		dpv1.RegisterDevicePluginServer(s, p)
		go func() { _ = s.Serve(l) }() // ended by Stop
		if err := p.register(ctx, filepath.Join(dir, kubelet)); err != nil {
			return servers, err
		}
	}
	return servers, nil
}

// register registers the plugin's socket with the kubelet.
func (p *plugin) register(ctx context.Context, kubelet string) error {
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = dpv1.NewRegistrationClient(conn).Register(ctx, &dpv1.RegisterRequest{Version: dpv1.Version, Endpoint: p.socket(), ResourceName: p.resource})
	return errors.Join(err, conn.Close())
}

// awaitRestart returns when the kubelet's socket has been replaced, a plugin's socket
// is gone, or ctx has ended. It polls because a directory that is removed and recreated
// escapes a watch.
func awaitRestart(ctx context.Context, dir string, plugins []*plugin) {
	first, err := os.Stat(filepath.Join(dir, kubelet))
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		var now os.FileInfo
		if now, err = os.Stat(filepath.Join(dir, kubelet)); err == nil && !os.SameFile(first, now) {
			return
		}
		for _, p := range plugins {
			if err == nil {
				_, err = os.Stat(filepath.Join(dir, p.socket()))
			}
		}
	}
}
