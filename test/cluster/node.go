package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/harness"
)

// NodeName is the name of the node and of its host.
const NodeName = "node1"

// Resources that the node's device plugin advertises. A node in namespaces has
// [DevicesPerResource] devices of each: Red on NUMA node 0, Blue on NUMA node 1.
const (
	Red  = "lab.example/red"
	Blue = "lab.example/blue"
)

// DevicesPerResource is the number of devices per resource on a node in namespaces.
const DevicesPerResource = 16

// Directories of a node, at their default paths.
const (
	confDir     = "/etc/cni/net.d"
	pluginDir   = "/opt/cni/bin"
	socket      = "/run/containerd/containerd.sock"
	manifestDir = "/etc/kubernetes/manifests" // static pods
)

// primaryConf is the default network's configuration, as a network's own installer
// would leave it.
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

// kubeletConf is the kubelet's configuration. syncFrequency makes the kubelet retry a
// failed pod after 3 seconds instead of 10 or more; a kubelet of 1.34 waits that long
// anyway.
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
syncFrequency: 3s
`

// Node is a machine that runs the programs of a Kubernetes node.
type Node struct {
	machine
	logs     string // logs, on this machine
	dir      string // programs and configuration, on the node's machine
	bin      string // the node's programs, on the node's machine
	archives string // image archives, on the node's machine
	address  string
	services map[string]service
	devices  map[string][]device // by resource
	// NetDevs maps device IDs to network devices; the name is empty for a device bound
	// to a userspace driver.
	NetDevs map[string]string
}

// machine is what a node runs on: this process's own machine, see [Enter], or a guest,
// see [EnterGuest].
type machine interface {
	// start starts a program and appends its output to a log file on this machine.
	start(log string, args ...string) (service, error)
	// run runs a program until it exits and returns its standard output.
	run(ctx context.Context, args ...string) ([]byte, error)
}

// service is a program that runs on a machine.
type service interface {
	Kill() error // Kill kills the program and returns when it has exited
}

// Services of a node.
const (
	Containerd   = "containerd"
	Kubelet      = "kubelet"
	DevicePlugin = "deviceplugin"
	Standalone   = "standalone" // a kubelet without an API server
	Agent        = "agent"      // Manifold's agent, run without a pod
)

// command returns a service's command line.
func (n *Node) command(service string) []string {
	kubelet := []string{filepath.Join(n.bin, "kubelet"), "--config", n.path("kubelet.yaml"), "--hostname-override", NodeName, "--node-ip", n.address, "--v=2"}
	return map[string][]string{
		Containerd:   {filepath.Join(n.bin, "containerd"), "--config", n.path("containerd.toml")},
		Kubelet:      append(slices.Clone(kubelet), "--kubeconfig", n.path("kubelet.kubeconfig")),
		Standalone:   kubelet,
		DevicePlugin: {n.path("bin/deviceplugin"), "--config", n.path("devices.json")},
		Agent:        {filepath.Join(pluginDir, "manifold-agent"), "serve"},
	}[service]
}

func (n *Node) path(elem string) string { return filepath.Join(n.dir, elem) }

// StartService starts a service that is not running.
func (n *Node) StartService(name string) (err error) {
	n.services[name], err = n.start(filepath.Join(n.logs, name+".log"), n.command(name)...)
	return err
}

// KillService kills a service; it does nothing for a service that is not running.
func (n *Node) KillService(name string) error {
	s := n.services[name]
	if s == nil {
		return nil
	}
	delete(n.services, name)
	return s.Kill()
}

// files returns the node's configuration files by path on the machine.
func (n *Node) files() (map[string][]byte, error) {
	advertised, err := json.Marshal(n.devices)
	return map[string][]byte{
		n.path("containerd.toml"): []byte(containerdConf), n.path("kubelet.yaml"): []byte(kubeletConf), n.path("devices.json"): advertised,
		filepath.Join(confDir, "10-cluster-net.conflist"): []byte(primaryConf),
	}, err
}

// write writes a file on the node atomically: the kubelet reads every file in its
// manifest directory as a static pod, unless the name begins with a dot.
func (n *Node) write(ctx context.Context, file string, content []byte) error {
	_, err := n.run(ctx, "/bin/sh", "-ec", `umask 077; mkdir -p "$2"; printf %s "$1" > "$2/.$3"; mv "$2/.$3" "$2/$3"`, "sh", string(content), filepath.Dir(file), filepath.Base(file))
	return err
}

// device is one device in the device plugin's configuration.
type device struct {
	ID   string          `json:"id"`
	NUMA int             `json:"numa"`
	Info json.RawMessage `json:"info,omitempty"`
}

// own is the machine of this process, with the directory of the node's programs.
type own struct{ bin string }

func (o own) command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+o.bin+":"+os.Getenv("PATH"))
	return cmd
}

func (o own) start(log string, args ...string) (service, error) {
	return harness.StartProcess(log, o.command(context.Background(), args))
}

func (o own) run(ctx context.Context, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := o.command(ctx, args)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%v: %w: %s", args, err, stderr.Bytes())
	}
	return out, nil
}

// install writes the files of a node on this machine: configuration, delegates, default
// network.
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
	files, err := n.files()
	if err != nil {
		return err
	}
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// nodeAddress is the node's own address on [Uplink].
const nodeAddress = "192.168.77.2"

// connect gives the node an uplink with its address. The other end accepts everything
// and answers nothing. Secondary networks are created on the uplink too.
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

// makeDevices creates the devices of both resources.
func (n *Node) makeDevices() error {
	host, err := harness.NewHost()
	if err != nil {
		return err
	}
	for numa, resource := range []string{Red, Blue} {
		for i := range DevicesPerResource {
			netDev := fmt.Sprintf("%s%d", filepath.Base(resource), i)
			id, err := host.AddDevice(netDev)
			if err != nil {
				return err
			}
			n.NetDevs[id] = netDev
			n.devices[resource] = append(n.devices[resource], device{ID: id, NUMA: numa})
		}
	}
	return mountSys()
}

// startNode turns this machine into a node that has yet to join its cluster.
func startNode(ctx context.Context, dir string, b *builds) (*Node, error) {
	n := &Node{
		machine: own{b.node}, logs: dir, dir: dir, bin: b.node, archives: b.archives, address: nodeAddress,
		services: map[string]service{}, devices: map[string][]device{}, NetDevs: map[string]string{},
	}
	install := func() error { return n.install(b.plugins, b.programs) }
	runtime := func() error { return n.startRuntime(ctx) }
	for _, step := range []func() error{connect, n.makeDevices, install, runtime} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// startRuntime starts the container runtime and waits until it answers.
func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.StartService(Containerd); err != nil {
		return err
	}
	return eventually(ctx, "containerd to serve", n.runtimeServes)
}

// runtimeServes returns nil when the runtime is ready for a kubelet to start.
func (n *Node) runtimeServes(ctx context.Context) error {
	_, err := n.run(ctx, n.path("bin/probe"), "runtime")
	return err
}

// startKubelet starts the kubelet and the device plugin.
func (n *Node) startKubelet() error {
	return errors.Join(n.StartService(Kubelet), n.StartService(DevicePlugin))
}

// Import imports an image archive.
func (n *Node) Import(ctx context.Context, archive string) error {
	return n.ctr(ctx, "--namespace", "k8s.io", "images", "import", "--local", filepath.Join(n.archives, archive))
}

func (n *Node) ctr(ctx context.Context, args ...string) error {
	_, err := n.run(ctx, append([]string{filepath.Join(n.bin, "ctr"), "--address", socket}, args...)...)
	return err
}

// patience is how long the cluster may take to reach a state. It allows for a busy
// machine; no test measures time with it.
const patience = 8 * time.Minute

// eventually waits until ok returns nil, at most [patience]. It spends at most half of
// the time in ok: programs start slowly on a guest, and constant probing would delay
// the very state it waits for.
func eventually(ctx context.Context, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for start := time.Now(); ; {
		began := time.Now()
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s waiting for %s: %w", time.Since(start).Round(time.Second), what, err)
		case <-time.After(max(100*time.Millisecond, time.Since(began))):
		}
	}
}
