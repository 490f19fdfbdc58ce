package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/harness"
)

// NodeName is the node's name, and its host's.
const NodeName = "node1"

// Resources that the node's device plugin advertises, each with [DevicesPerResource]
// devices, on NUMA nodes 0 and 1.
const (
	Red  = "lab.example/red"
	Blue = "lab.example/blue"
)

// DevicesPerResource is how many devices each resource has.
const DevicesPerResource = 8

// Directories of a node, as they are by default.
const (
	confDir     = "/etc/cni/net.d"
	pluginDir   = "/opt/cni/bin"
	socket      = "/run/containerd/containerd.sock"
	manifestDir = "/etc/kubernetes/manifests" // of static pods
)

// primaryConf is the default network's configuration, as a network's own
// installer would have put it there.
const primaryConf = `{"cniVersion": "1.0.0", "name": "cluster-net", "plugins": [{
	"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

const containerdConf = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + socket + `"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + BoxImage + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["` + pluginDir + `"]
  conf_dir = "` + confDir + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
`

const kubeletConf = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://` + socket + `
cgroupDriver: cgroupfs
failCgroupV1: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
maxPods: 250
nodeStatusUpdateFrequency: 5s
podLogsDir: /var/log/pods
staticPodPath: ` + manifestDir + `
registryPullQPS: 0
`

// Node is a node: the machine that this process runs on, see [Enter], with the
// programs of a node.
type Node struct {
	dir        string // of logs and configuration
	bin        string // of the node's programs
	kubeconfig string
	services   map[string]*harness.Process
	// NetDevs are the network devices by device ID.
	NetDevs map[string]string
}

// Services of a node.
const (
	Containerd   = "containerd"
	Kubelet      = "kubelet"
	DevicePlugin = "deviceplugin"
)

// commands returns a service's command line.
func (n *Node) command(service string) *exec.Cmd {
	args := map[string][]string{
		Containerd: {filepath.Join(n.bin, "containerd"), "--config", n.path("containerd.toml")},
		Kubelet: {filepath.Join(n.bin, "kubelet"), "--config", n.path("kubelet.yaml"), "--kubeconfig", n.kubeconfig,
			"--hostname-override", NodeName, "--node-ip", nodeAddress, "--v=2"},
		DevicePlugin: {n.path("bin/deviceplugin"), "--config", n.path("devices.json")},
	}[service]
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+n.bin+":"+os.Getenv("PATH"))
	return cmd
}

func (n *Node) path(elem string) string { return filepath.Join(n.dir, elem) }

// StartService starts a service, which is not running.
func (n *Node) StartService(name string) (err error) {
	n.services[name], err = harness.StartProcess(n.path(name+".log"), n.command(name))
	return err
}

// KillService ends a service at once.
func (n *Node) KillService(name string) error { return n.services[name].Kill() }

// install makes the node's files: configuration, delegates, default network.
func (n *Node) install(plugins, programs string) error {
	for _, d := range []string{confDir, pluginDir, manifestDir, n.path("bin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{plugins: pluginDir, programs: n.path("bin")} {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			return err
		}
	}
	files := map[string]string{
		n.path("containerd.toml"): containerdConf, n.path("kubelet.yaml"): kubeletConf,
		filepath.Join(confDir, "10-cluster-net.conflist"): primaryConf,
	}
	for path, content := range files {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// nodeAddress is the node's own address.
const nodeAddress = "192.168.77.2"

// connect gives the node an interface with its address and a default route; what
// is at the other end takes everything and answers nothing. It is also what
// secondary networks are made on.
func connect() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Uplink
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire0"}); err != nil {
		return err
	}
	for _, name := range []string{"lo", Uplink, "wire0"} {
		l, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	uplink, err := netlinksafe.LinkByName(Uplink)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(nodeAddress + "/24")
	if err != nil {
		return err
	}
	return netlink.AddrAdd(uplink, addr)
}

// Uplink is the node's interface to the outside.
const Uplink = "uplink0"

// makeDevices makes the devices of both resources and the device plugin's
// configuration.
func (n *Node) makeDevices() error {
	host, err := harness.NewHost()
	if err != nil {
		return err
	}
	type device struct {
		ID   string `json:"id"`
		NUMA int    `json:"numa"`
	}
	config := map[string][]device{}
	for numa, resource := range []string{Red, Blue} {
		for i := range DevicesPerResource {
			netDev := fmt.Sprintf("%s%d", filepath.Base(resource), i)
			id, err := host.AddDevice(netDev)
			if err != nil {
				return err
			}
			n.NetDevs[id] = netDev
			config[resource] = append(config[resource], device{id, numa})
		}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return errors.Join(mountSys(), os.WriteFile(n.path("devices.json"), raw, 0o600))
}

// startNode makes this machine a node and starts its programs.
func startNode(ctx context.Context, dir, kubeconfig string, b *builds) (*Node, error) {
	n := &Node{dir: dir, bin: b.node, kubeconfig: kubeconfig, services: map[string]*harness.Process{}, NetDevs: map[string]string{}}
	for _, step := range []func() error{connect, func() error { return n.install(b.plugins, b.programs) }, n.makeDevices} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if err := n.StartService(Containerd); err != nil {
		return nil, err
	}
	if err := eventually(ctx, "containerd", func(ctx context.Context) error { return n.ctr(ctx, "version") }); err != nil {
		return nil, err
	}
	if err := n.Import(ctx, b.box); err != nil {
		return nil, err
	}
	return n, errors.Join(n.StartService(Kubelet), n.StartService(DevicePlugin))
}

// Import imports an image archive.
func (n *Node) Import(ctx context.Context, archive string) error {
	return n.ctr(ctx, "--namespace", "k8s.io", "images", "import", "--local", archive)
}

func (n *Node) ctr(ctx context.Context, args ...string) error {
	text, err := exec.CommandContext(ctx, filepath.Join(n.bin, "ctr"), append([]string{"--address", socket}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr %v: %w: %s", args, err, text)
	}
	return nil
}

// patience is how long the cluster may take to reach a state; nothing is measured
// by it.
const patience = 4 * time.Minute

// eventually waits until ok returns nil.
func eventually(ctx context.Context, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
