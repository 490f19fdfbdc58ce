package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/vm"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// EnterGuest is [Enter] for a node that is a guest with SR-IOV functions, see
// [StartGuest]. This process gets network and mount namespaces of its own, which needs
// no root where user namespaces are allowed.
func EnterGuest() (code int, err error) {
	if os.Getenv(dirEnv) != "" {
		return harness.Enter()
	}
	dir, err := os.MkdirTemp("", "manifold-node-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Setenv(dirEnv, dir); err != nil {
		return 0, err
	}
	return harness.Enter(
		func() error { return build(dir, guestReleases) },
		func() error {
			_, err := vm.Install(context.Background(), os.Stdout)
			return err
		})
}

// StartGuest starts a cluster after [EnterGuest]: the control plane on this machine's
// loopback, and as its node a guest with two PFs whose VFs are the devices of the
// resources. It waits until the node is ready and has its devices.
func StartGuest(ctx context.Context) (c *Cluster, err error) {
	if err := answer(vm.GuestAddress); err != nil {
		return nil, err
	}
	// The API server reaches the agent at the node's address, which this machine holds,
	// so its connections also come from that address. The guest would take such a peer
	// for itself: the forwarder connects from 127.0.0.1 instead.
	view := fmt.Sprintf(":%d", viewPort)
	if err := forward(vm.GuestAddress+view, "127.0.0.1"+view); err != nil {
		return nil, err
	}
	c, b, err := prepare()
	if err != nil {
		return nil, err
	}
	err = atOnce(c.startControlPlane, func() (err error) {
		c.Node, err = bootNode(ctx, c.dir, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(apiserver.URL(), "https://"))
	if err != nil {
		return nil, err
	}
	c.values["apiServer"] = map[string]any{"host": vm.GuestsHost, "port": port}
	return c, c.join(ctx, "https://"+net.JoinHostPort(vm.GuestsHost, port), guestReleases)
}

// guestDir is the directory of the guest's files, within a run's directory.
const guestDir = "guest"

// viewPort is the port where the agent serves the node's view. kubectl manifold reaches
// it through the API server.
const viewPort = 9611

// Userspace is a resource that only a guest node has: one VF, bound to vfio-pci.
const Userspace = "lab.example/userspace"

// bootNode boots a guest as a node that has yet to join its cluster.
func bootNode(ctx context.Context, dir string, b *builds) (*Node, error) {
	const own = "/opt/node"
	devices, err := functions()
	if err != nil {
		return nil, err
	}
	n := &Node{
		logs: filepath.Join(dir, nodeDir), dir: own, bin: own + "/programs", archives: own + "/images", address: vm.GuestAddress,
		services: map[string]service{}, devices: devices,
	}
	g := &guest{path: n.bin + ":/bin", config: vm.Config{
		Dir: filepath.Join(dir, guestDir), PFs: 2, IOMMU: true, Disk: filepath.Join(dir, guestDir, "disk"), Root: true, Uplink: Uplink, Ports: []int{viewPort},
		Modules: []string{"overlay", "veth", "bridge", "br_netfilter", "macvlan"},
		Files: map[string]string{
			n.bin: b.node, n.path("bin"): b.programs, pluginDir: b.plugins,
			pluginDir + "/scripted": filepath.Join(b.programs, "scripted"), pluginDir + "/vfprops": filepath.Join(b.programs, "vfprops"),
			filepath.Join(n.archives, boxFile): filepath.Join(b.archives, boxFile), filepath.Join(n.archives, imageFile(release)): filepath.Join(b.archives, imageFile(release)),
		},
	}}
	n.machine = g
	files, err := n.files()
	if err != nil {
		return nil, err
	}
	// The kubelet and the container runtime read these files.
	for path, content := range map[string]string{
		"/etc/resolv.conf": "", "/etc/hosts": "127.0.0.1 localhost\n", "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n",
	} {
		files[path] = []byte(content)
	}
	for path, content := range files {
		from := filepath.Join(n.logs, strings.ReplaceAll(path, "/", "-"))
		if err := os.WriteFile(from, content, 0o600); err != nil {
			return nil, err
		}
		g.config.Files[path] = from
	}
	return n, n.powerOn(ctx)
}

// functions returns the VFs of the guest's PFs as devices with device information. Each
// PF's VFs are one resource, except the last VF of the second PF, which is the
// [Userspace] device.
func functions() (map[string][]device, error) {
	out := map[string][]device{}
	for numa, resource := range []string{Red, Blue} {
		pf, vfs := vm.Functions(numa)
		for i, vf := range vfs {
			info, err := json.Marshal(netattach.DeviceInfo{Type: "pci", Version: "1.1.0", PCI: &netattach.PCI{Address: vf, PFAddress: pf}})
			if err != nil {
				return nil, err
			}
			if resource == Blue && i == len(vfs)-1 {
				resource = Userspace
			}
			out[resource] = append(out[resource], device{ID: vf, NUMA: numa, Info: info})
		}
	}
	return out, nil
}

// powerOn boots a node's guest from its existing disk, prepares its devices, and starts
// its container runtime.
func (n *Node) powerOn(ctx context.Context) error {
	if err := n.machine.(*guest).boot(ctx); err != nil {
		return err
	}
	// Pods request huge pages, and the kubelet counts them only when it starts.
	if _, err := n.run(ctx, "/bin/sh", "-c", "echo 8 > /proc/sys/vm/nr_hugepages"); err != nil {
		return err
	}
	for _, d := range n.devices[Userspace] {
		const bind = `cd /sys/bus/pci/devices/$1; echo vfio-pci > driver_override; echo $1 > driver/unbind; echo $1 > /sys/bus/pci/drivers_probe; [ "$(basename "$(readlink driver)")" = vfio-pci ]`
		if _, err := n.run(ctx, "/bin/sh", "-ec", bind, "bind", d.ID); err != nil {
			return err
		}
	}
	n.NetDevs = map[string]string{}
	for _, devices := range n.devices {
		for _, d := range devices {
			name, err := n.run(ctx, "/bin/sh", "-c", "cd /sys/bus/pci/devices/$1/net && ls || true", "name", d.ID)
			if err != nil {
				return err
			}
			n.NetDevs[d.ID] = strings.TrimSpace(string(name))
		}
	}
	return n.startRuntime(ctx)
}

// powerOff stops a node's guest as a power failure does.
func (n *Node) powerOff() error {
	if err := n.machine.(*guest).Machine.Kill(); err != nil {
		return err
	}
	for name := range n.services {
		_ = n.KillService(name) // it died with the guest
	}
	return nil
}

// guest is a virtual machine that a node runs on.
type guest struct {
	path   string // PATH of the programs run there
	config vm.Config
	*vm.Machine
}

// bootLimit is how long a guest may take to boot, with the download of its software. On an
// idle machine booting takes half a minute. An emulated machine can also stand still: then
// time must be left to run the lab again.
const bootLimit = 8 * time.Minute

// boot boots the guest from its existing disk.
func (g *guest) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	software, err := vm.Install(ctx, os.Stdout)
	if err != nil {
		return err
	}
	if g.Machine, err = vm.Boot(ctx, software, g.config); err != nil {
		return err
	}
	_, err1 := g.run(ctx, "/bin/busybox", "--install", "-s", "/bin")
	_, err2 := g.run(ctx, "/bin/mkdir", "-p", manifestDir)
	return errors.Join(err1, err2)
}

func (g *guest) command(args []string) vm.Command {
	return vm.Command{Command: wire.Command{Args: args, Env: []string{"PATH=" + g.path}}}
}

func (g *guest) start(log string, args ...string) (service, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	c := g.command(args)
	c.Stdout, c.Stderr = f, f
	p, err := g.Start(c)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &guestService{p, f}, nil
}

func (g *guest) run(ctx context.Context, args ...string) ([]byte, error) {
	c := g.command(args)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	status, err := g.Run(ctx, c)
	if err == nil && status != 0 {
		err = fmt.Errorf("%v: status %d: %s", args, status, stderr.Bytes())
	}
	return stdout.Bytes(), err
}

// guestService is a program running in a guest.
type guestService struct {
	*vm.Process
	log *os.File
}

func (s *guestService) Kill() error {
	err := s.Signal(syscall.SIGKILL)
	if err == nil {
		_, err = s.Wait(context.Background())
	}
	return errors.Join(err, s.log.Close())
}
