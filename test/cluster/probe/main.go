// Command probe tells what is on a node, as JSON, as the kernel, the container
// runtime's files and the kubelet have it, not as the API server says.
//
//	probe containers   # what runs, with environment and interfaces: [nodestate.Container]
//	probe state        # what must be as before when pods have gone: [harness.HostState]
//	probe devices      # what the kubelet has given away: [nodestate.Allocation]
//	probe allocatable  # what it has to give, of no pod
//	probe runtime      # nothing: fails until the container runtime serves a kubelet
//	probe end SANDBOX  # nothing: has the runtime end a sandbox, as the kubelet does
//
// The labs run it on the node, which may be another machine than the test's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/test/cluster/nodestate"
	"github.com/manifold-cni/manifold/test/harness"
)

func main() {
	answer, err := answer(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func answer(args []string) (any, error) {
	switch {
	case len(args) == 1 && args[0] == "containers":
		return containers()
	case len(args) == 1 && args[0] == "state":
		return state()
	case len(args) == 1 && args[0] == "devices":
		return ask(context.Background(), devices)
	case len(args) == 1 && args[0] == "allocatable":
		return ask(context.Background(), allocatable)
	case len(args) == 1 && args[0] == "runtime":
		return nil, runtime(context.Background(), "Version", &emptypb.Empty{})
	case len(args) == 2 && args[0] == "end":
		return nil, runtime(context.Background(), "StopPodSandbox", wrapperspb.String(args[1])) // on the wire the same message
	}
	return nil, errors.New("usage: probe containers | state | devices | allocatable | runtime | end SANDBOX")
}

// runtime calls containerd as a kubelet does, which asks for its Version first. That
// is answered some time after containerd's own API is there, and a kubelet that is
// refused ends. Of the answer only matters that it comes.
func runtime(ctx context.Context, method string, question proto.Message) error {
	conn, err := grpc.NewClient("unix:///run/containerd/containerd.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, question, &emptypb.Empty{})
}

// netnsDir is where the runtime keeps sandboxes' network namespaces.
const netnsDir = "/run/netns"

// state is the host's network, the plugins' files and the network namespaces.
func state() (harness.HostState, error) {
	s, err := harness.Capture("/var/lib/cni", netnsDir)
	return slices.DeleteFunc(s, func(line string) bool {
		path, isFile := strings.CutPrefix(line, "file ")
		return isFile && filepath.Dir(path) == netnsDir && untouched(path)
	}), err
}

// untouched tells whether no plugin was ever called for a network namespace: it
// has its loopback alone, which is down. A runtime that is killed before it has
// recorded the namespace it made forgets it.
func untouched(path string) bool {
	var links []netlink.Link
	err := (&harness.NetNS{Path: path}).Do(func() (err error) {
		links, err = netlinksafe.LinkList()
		return err
	})
	return err == nil && len(links) == 1 && links[0].Attrs().Flags&net.FlagUp == 0
}

// ask asks the kubelet for devices.
func ask(ctx context.Context, what func(context.Context, podresourcesv1.PodResourcesListerClient) ([]nodestate.Allocation, error)) (out []nodestate.Allocation, err error) {
	conn, err := grpc.NewClient("unix:///var/lib/kubelet/pod-resources/kubelet.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return what(ctx, podresourcesv1.NewPodResourcesListerClient(conn))
}

// allocatable asks for the healthy devices of each resource.
func allocatable(ctx context.Context, kubelet podresourcesv1.PodResourcesListerClient) (out []nodestate.Allocation, err error) {
	all, err := kubelet.GetAllocatableResources(ctx, &podresourcesv1.AllocatableResourcesRequest{})
	for _, d := range all.GetDevices() {
		out = append(out, nodestate.Allocation{Resource: d.GetResourceName(), IDs: d.GetDeviceIds()})
	}
	return out, err
}

// devices asks for the devices of all containers.
func devices(ctx context.Context, kubelet podresourcesv1.PodResourcesListerClient) (out []nodestate.Allocation, err error) {
	list, err := kubelet.List(ctx, &podresourcesv1.ListPodResourcesRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range list.GetPodResources() {
		for _, c := range p.GetContainers() {
			for _, d := range c.GetDevices() {
				out = append(out, nodestate.Allocation{Pod: p.GetNamespace() + "/" + p.GetName(), Container: c.GetName(), Resource: d.GetResourceName(), IDs: d.GetDeviceIds()})
			}
		}
	}
	return out, nil
}

// tasks is where containerd keeps the bundles of what runs.
const tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"

func containers() ([]nodestate.Container, error) {
	bundles, err := os.ReadDir(tasks)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := []nodestate.Container{}
	for _, b := range bundles {
		c, err := container(filepath.Join(tasks, b.Name()))
		if errors.Is(err, os.ErrNotExist) { // it ends, or has not begun
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", b.Name(), err)
		}
		c.ID = b.Name()
		out = append(out, *c)
	}
	return out, nil
}

// container reads a bundle.
func container(bundle string) (*nodestate.Container, error) {
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Process     struct {
			Env []string `json:"env"`
		} `json:"process"`
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, err
	}
	const prefix = "io.kubernetes.cri."
	c := &nodestate.Container{
		Kind: spec.Annotations[prefix+"container-type"], Sandbox: spec.Annotations[prefix+"sandbox-id"], Name: spec.Annotations[prefix+"container-name"],
		Pod: spec.Annotations[prefix+"sandbox-namespace"] + "/" + spec.Annotations[prefix+"sandbox-name"], UID: spec.Annotations[prefix+"sandbox-uid"],
		Env: map[string]string{},
	}
	for _, kv := range spec.Process.Env {
		key, value, _ := strings.Cut(kv, "=")
		c.Env[key] = value
	}
	pid, err := os.ReadFile(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return nil, err
	}
	if c.PID, err = strconv.Atoi(strings.TrimSpace(string(pid))); err != nil {
		return nil, err
	}
	c.Links, err = links(fmt.Sprintf("/proc/%d/ns/net", c.PID))
	return c, err
}

// links lists the interfaces of a network namespace but loopback.
func links(netns string) (out []nodestate.Link, err error) {
	err = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		all, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		for _, l := range all {
			a := l.Attrs()
			if a.Name == "lo" {
				continue
			}
			link := nodestate.Link{Name: a.Name, Kind: l.Type(), MAC: a.HardwareAddr.String(), Alias: a.Alias, Parent: a.ParentDev}
			addrs, err := netlinksafe.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				link.Addresses = append(link.Addresses, addr.IP.String())
			}
			out = append(out, link)
		}
		return nil
	})
	var gone ns.NSPathNotExistErr
	if errors.As(err, &gone) {
		return nil, os.ErrNotExist
	}
	return out, err
}
