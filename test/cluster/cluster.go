package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
)

// Cluster is a running cluster of one node.
type Cluster struct {
	API    *apiserver.Server
	Client kubernetes.Interface
	Node   *Node
	// Kubeconfig is the path of the administrator's.
	Kubeconfig string
	dir        string         // of the run
	root       string         // of the repository
	values     map[string]any // of the chart that the node needs
}

// kubeletEnv selects the line of the node's kubelet, by default the newest.
const kubeletEnv = "KUBELET"

// kubeletLine is the line of the node's kubelet.
func kubeletLine() string { return cmp.Or(os.Getenv(kubeletEnv), harness.NewestKubelet) }

// hasPodsAPI tells whether the node's kubelet serves its Pods API.
func hasPodsAPI() bool { return kubeletLine() != harness.OlderKubelet }

func nodePrograms() (string, error) { return harness.NodePrograms(kubeletLine()) }

// builds are the programs that a cluster is made of.
type builds struct {
	node     string // directory of the kubelet, containerd, runc
	plugins  string // directory of the CNI reference plugins
	programs string // directory of ours
	archives string // directory of image archives
}

// buildDir is where our own programs are built, outside the machine, in the
// directory of the run.
func buildDir(dir string) string { return filepath.Join(dir, "programs") }

// toolDir is where the programs of the cluster's administrator are built, which the
// node does not have.
func toolDir(dir string) string { return filepath.Join(dir, "tools") }

// build builds everything, in the run's directory what is ours: programs for the node
// beside those that every lab has, and images of releases. It must be called outside
// the machine, since builds need the network.
func build(dir string, releases []string, programs ...string) error {
	for _, f := range []func() (string, error){nodePrograms, harness.PluginDir, harness.ControlPlane, harness.Controllers, harness.Helm} {
		if _, err := f(); err != nil {
			return err
		}
	}
	programs = append(programs, "./test/deviceplugin", "./test/cluster/box", "./test/cluster/probe", "./test/delegates/scripted", "./test/delegates/vfprops")
	builds := []func() error{
		func() error { return harness.Build(buildDir(dir), programs...) },
		func() error { return harness.Build(toolDir(dir), "./cmd/kubectl-manifold") },
	}
	for _, release := range releases {
		builds = append(builds, func() error { return harness.Image(filepath.Join(dir, imageFile(release)), release) })
	}
	return atOnce(builds...)
}

// atOnce does several things at once and returns when all are done.
func atOnce(things ...func() error) error {
	errs := make([]error, len(things))
	var all sync.WaitGroup
	for i, do := range things {
		all.Go(func() { errs[i] = do() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Releases of Manifold, which differ in their names alone: the one that is
// installed, and one to upgrade to.
const (
	release     = "lab"
	nextRelease = "lab-next"
)

// Releases that a node has the images of: one whose machine is this one both; to a
// guest each is half a minute.
var releases, guestReleases = []string{release, nextRelease}, []string{release}

// imageFile is the archive of a release's image, in the run's directory or on the
// node.
func imageFile(release string) string { return release + ".tar" }

// boxFile is that of the image of pods.
const boxFile = "box.tar"

// built returns what [build] has built.
func built(dir string) (b *builds, err error) {
	b = &builds{programs: buildDir(dir), archives: dir}
	if b.node, err = nodePrograms(); err != nil {
		return nil, err
	}
	if b.plugins, err = harness.PluginDir(); err != nil {
		return nil, err
	}
	return b, writeBoxImage(filepath.Join(dir, boxFile), filepath.Join(b.programs, "box"))
}

// Start starts a cluster on the machine that [Enter] made and waits until its
// node is ready and has its devices.
func Start(ctx context.Context) (c *Cluster, err error) {
	host, _, _ := strings.Cut(serviceAddress, ":")
	if err := answer(host); err != nil {
		return nil, err
	}
	c, b, err := prepare()
	if err != nil {
		return nil, err
	}
	if err := c.startControlPlane(); err != nil {
		return nil, err
	}
	if err := forward(serviceAddress, strings.TrimPrefix(apiserver.URL(), "https://")); err != nil {
		return nil, err
	}
	if c.Node, err = startNode(ctx, filepath.Join(c.dir, nodeDir), b); err != nil {
		return nil, err
	}
	return c, c.join(ctx, apiserver.URL(), releases)
}

// join starts the node's kubelet, which reaches the API server at url, gives the node
// the images of pods and of releases, and waits until it is ready and has its devices.
func (c *Cluster) join(ctx context.Context, url string, releases []string) error {
	kubeconfig, err := c.API.NodeKubeconfig(url)
	if err != nil {
		return err
	}
	access, err := os.ReadFile(kubeconfig)
	if err != nil {
		return err
	}
	if err := c.Node.write(ctx, c.Node.path("kubelet.kubeconfig"), access); err != nil {
		return err
	}
	if err := c.Node.startKubelet(); err != nil {
		return err
	}
	imports := []func() error{func() error { return c.Node.Import(ctx, boxFile) }}
	for _, r := range releases {
		imports = append(imports, func() error { return c.Node.Import(ctx, imageFile(r)) })
	}
	if err := atOnce(imports...); err != nil {
		return err
	}
	return eventually(ctx, "the node to be ready with its devices", c.nodeReady)
}

// Directories of a run: of the control plane's and of the node's files at hand.
const (
	controlDir = "control"
	nodeDir    = "node"
)

// prepare returns a cluster of which nothing runs yet, and what it is made of.
func prepare() (c *Cluster, b *builds, err error) {
	c = &Cluster{dir: os.Getenv(dirEnv), values: map[string]any{}}
	if !hasPodsAPI() {
		c.values["podsAPI"] = false
	}
	if c.root, err = harness.ModuleRoot(); err != nil {
		return nil, nil, err
	}
	for _, d := range []string{controlDir, nodeDir} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o700); err != nil {
			return nil, nil, err
		}
	}
	b, err = built(c.dir)
	return c, b, err
}

// startControlPlane starts what the node is yet to join, on this machine's loopback.
func (c *Cluster) startControlPlane() (err error) {
	if c.API, err = apiserver.StartCluster(filepath.Join(c.dir, controlDir), NodeName); err != nil {
		return err
	}
	if c.Kubeconfig, err = c.API.AdminKubeconfig(); err != nil {
		return err
	}
	c.Client, err = c.API.Client()
	return err
}

// Stop ends the control plane, and a node that is a guest; one that is this
// machine ends with it.
func (c *Cluster) Stop() error {
	err := c.API.Stop()
	if _, ok := c.Node.machine.(*guest); ok {
		err = errors.Join(err, c.Node.powerOff())
	}
	return err
}

// nodeReady returns nil when the node is ready and its devices can be asked for.
func (c *Cluster) nodeReady(ctx context.Context) error {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for resource, devices := range c.Node.devices {
		if n := node.Status.Allocatable[corev1.ResourceName(resource)]; int(n.Value()) != len(devices) {
			return fmt.Errorf("%s of %s are allocatable", n.String(), resource)
		}
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
			return fmt.Errorf("%s: %s", cond.Reason, cond.Message)
		}
	}
	for _, taint := range node.Spec.Taints {
		if taint.Key == corev1.TaintNodeNotReady {
			return errors.New("the node is tainted as not ready")
		}
	}
	return nil
}

// serviceAddress is the API server's service address, which pods are given.
const serviceAddress = "10.96.0.1:443"

// answer makes an address one of this machine, on loopback, which it brings up.
func answer(address string) error {
	lo, err := netlinksafe.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address + "/32")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, addr))
}

// forward passes connections to one address on to another, as long as this
// process lives.
func forward(from, to string) error {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return err
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go pass(in, to)
		}
	}()
	return nil
}

// pass connects one connection with a new one to an address, until either ends.
func pass(in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // either end may go at any time
			done <- struct{}{}
		}()
	}
	<-done
}

// Environment is this process's, with the cluster's programs first in PATH and set
// up for it.
func (c *Cluster) Environment() ([]string, error) {
	control, err1 := harness.Controllers()
	helm, err2 := harness.Helm()
	path := strings.Join([]string{control, c.Node.bin, filepath.Dir(helm), toolDir(c.dir), buildDir(c.dir), os.Getenv("PATH")}, ":")
	env := append(os.Environ(), "PATH="+path, "KUBECONFIG="+c.Kubeconfig, "CONTAINERD_ADDRESS="+socket, "CONTAINERD_NAMESPACE=k8s.io")
	return env, errors.Join(err1, err2)
}
