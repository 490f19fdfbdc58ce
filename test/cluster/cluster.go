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
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string
	dir        string         // directory of the run
	root       string         // root of the repository
	values     map[string]any // chart values that this node needs
}

// kubeletEnv selects the release line of the node's kubelet; the default is the newest.
const kubeletEnv = "KUBELET"

// kubeletLine returns the release line of the node's kubelet.
func kubeletLine() string { return cmp.Or(os.Getenv(kubeletEnv), harness.NewestKubelet) }

// hasPodsAPI tells whether the node's kubelet serves the Pods API.
func hasPodsAPI() bool { return kubeletLine() != harness.OlderKubelet }

func nodePrograms() (string, error) { return harness.NodePrograms(kubeletLine()) }

// builds holds the directories of everything that a cluster is built from.
type builds struct {
	node     string // kubelet, containerd, runc
	plugins  string // CNI reference plugins
	programs string // our own programs
	archives string // image archives
}

// buildDir is the directory of our own programs, built outside the machine, within a
// run's directory.
func buildDir(dir string) string { return filepath.Join(dir, "programs") }

// toolDir is the directory of the cluster administrator's programs, which the node does
// not have.
func toolDir(dir string) string { return filepath.Join(dir, "tools") }

// build builds everything: third-party programs into the cache, and into the run's
// directory the images of releases, the programs that every lab needs, and the given
// programs for the node. Call it outside the machine: builds need the network.
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

// atOnce runs functions concurrently and returns their joined errors when all have
// returned.
func atOnce(things ...func() error) error {
	errs := make([]error, len(things))
	var all sync.WaitGroup
	for i, do := range things {
		all.Go(func() { errs[i] = do() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Releases of Manifold, which differ only in name: the one that is installed, and one
// to upgrade to.
const (
	release     = "lab"
	nextRelease = "lab-next"
)

// Releases whose images a node gets. A node in namespaces gets both; a guest gets only
// the installed one, because importing an image takes half a minute there.
var releases, guestReleases = []string{release, nextRelease}, []string{release}

// imageFile is the name of a release's image archive, both in the run's directory and
// on the node.
func imageFile(release string) string { return release + ".tar" }

// boxFile is the image archive of the pods' image.
const boxFile = "box.tar"

// built returns the directories that [build] filled, after writing the pods' image.
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

// Start starts a cluster on the machine that [Enter] created and waits until its node
// is ready and has its devices.
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

// join starts the node's kubelet, which connects to the API server at url, imports the
// images of pods and of releases, and waits until the node is ready and has its
// devices.
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

// Subdirectories of a run's directory: the control plane's files, and the node's files
// on this machine.
const (
	controlDir = "control"
	nodeDir    = "node"
)

// prepare returns a cluster with nothing running yet, and the directories it is built
// from.
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

// startControlPlane starts the control plane on this machine's loopback; the node joins
// later.
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

// Stop stops the control plane and a guest node. A node on this machine needs no stop:
// it ends with the process.
func (c *Cluster) Stop() error {
	err := c.API.Stop()
	if _, ok := c.Node.machine.(*guest); ok {
		err = errors.Join(err, c.Node.powerOff())
	}
	return err
}

// nodeReady returns nil when the node is ready and all its devices are allocatable.
func (c *Cluster) nodeReady(ctx context.Context) error {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for resource, devices := range c.Node.devices {
		if n := node.Status.Allocatable[corev1.ResourceName(resource)]; int(n.Value()) != len(devices) {
			return fmt.Errorf("%s devices of %s are allocatable, want %d", n.String(), resource, len(devices))
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

// serviceAddress is the API server's service address, which pods get in their
// environment.
const serviceAddress = "10.96.0.1:443"

// answer adds an address to this machine's loopback, which it brings up.
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

// forward listens on one address and passes each connection on to another, for the
// lifetime of this process.
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

// pass connects in to a new connection to an address, until either side closes.
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
			_, _ = io.Copy(way[0], way[1]) // either side may close at any time
			done <- struct{}{}
		}()
	}
	<-done
}

// Environment returns this process's environment with PATH, kubeconfig and containerd
// address set for the cluster; the cluster's programs come first in PATH.
func (c *Cluster) Environment() ([]string, error) {
	control, err1 := harness.Controllers()
	helm, err2 := harness.Helm()
	path := strings.Join([]string{control, c.Node.bin, filepath.Dir(helm), toolDir(c.dir), buildDir(c.dir), os.Getenv("PATH")}, ":")
	env := append(os.Environ(), "PATH="+path, "KUBECONFIG="+c.Kubeconfig, "CONTAINERD_ADDRESS="+socket, "CONTAINERD_NAMESPACE=k8s.io")
	return env, errors.Join(err1, err2)
}
