// Command probe prints what is on a node as JSON. It asks the kernel, the container
// runtime's files and the kubelet, never the API server.
//
//	probe containers   # running containers with environment and interfaces: [nodestate.Container]
//	probe state        # what must be unchanged when pods are gone: [harness.HostState]
//	probe devices      # devices that the kubelet has allocated: [nodestate.Allocation]
//	probe allocatable  # devices that the kubelet can allocate: the same, without pods
//	probe runtime      # nothing: fails until the container runtime is ready for a kubelet
//	probe end SANDBOX  # nothing: has the runtime stop a sandbox, as the kubelet does
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
		return nil, runtime(context.Background(), "StopPodSandbox", wrapperspb.String(args[1])) // an equal message on the wire
	}
	return nil, errors.New("usage: probe containers | state | devices | allocatable | runtime | end SANDBOX")
}

// runtime calls a method of the CRI on containerd. The kubelet asks for the Version
// first and exits if it is refused, and containerd answers that only some time after
// its own API. The content of the answer does not matter.
func runtime(ctx context.Context, method string, question proto.Message) error {
	conn, err := grpc.NewClient("unix:///run/containerd/containerd.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, question, &emptypb.Empty{})
}

// netnsDir is where the runtime keeps the network namespaces of sandboxes.
const netnsDir = "/run/netns"

// state returns the host's network, the plugins' files and the network namespaces.
func state() (harness.HostState, error) {
	s, err := harness.Capture("/var/lib/cni", netnsDir)
	return slices.DeleteFunc(s, func(line string) bool {
		path, isFile := strings.CutPrefix(line, "file ")
		return isFile && filepath.Dir(path) == netnsDir && untouched(path)
	}), err
}

// untouched tells whether no plugin was ever called for a network namespace: loopback
// is its only link, and is down. A runtime that is killed after it has created a
// namespace but before it has recorded it leaves such a namespace behind.
func untouched(path string) bool {
	var links []netlink.Link
	err := (&harness.NetNS{Path: path}).Do(func() (err error) {
		links, err = netlinksafe.LinkList()
		return err
	})
	return err == nil && len(links) == 1 && links[0].Attrs().Flags&net.FlagUp == 0
}

// ask calls what with a client of the kubelet's PodResources API.
func ask(ctx context.Context, what func(context.Context, podresourcesv1.PodResourcesListerClient) ([]nodestate.Allocation, error)) (out []nodestate.Allocation, err error) {
	conn, err := grpc.NewClient("unix:///var/lib/kubelet/pod-resources/kubelet.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return what(ctx, podresourcesv1.NewPodResourcesListerClient(conn))
}

// allocatable returns the allocatable devices of each resource.
func allocatable(ctx context.Context, kubelet podresourcesv1.PodResourcesListerClient) (out []nodestate.Allocation, err error) {
	all, err := kubelet.GetAllocatableResources(ctx, &podresourcesv1.AllocatableResourcesRequest{})
	for _, d := range all.GetDevices() {
		out = append(out, nodestate.Allocation{Resource: d.GetResourceName(), IDs: d.GetDeviceIds()})
	}
	return out, err
}

// devices returns the allocated devices of all containers.
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

// tasks is where containerd keeps the bundles of running containers.
const tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"

func containers() ([]nodestate.Container, error) {
	bundles, err := os.ReadDir(tasks)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := []nodestate.Container{}
	for _, b := range bundles {
		c, err := container(filepath.Join(tasks, b.Name()))
		if errors.Is(err, os.ErrNotExist) { // it is ending, or has not started yet
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

// container reads a container from its bundle.
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

// links returns the interfaces of a network namespace except loopback.
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
