//go:build apiserver

package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
)

// Names that the chart uses.
const (
	release    = "manifold"
	namespace  = "kube-system"
	name       = "manifold-webhook"
	repository = "../.."
)

// Programs, built once for all tests, outside the namespaces.
var (
	programDir = filepath.Join(os.TempDir(), fmt.Sprintf("manifold-admission-%d", os.Getuid()))
	kubectlDir string
	helm       string
)

func TestMain(m *testing.M) {
	var err error
	if kubectlDir, err = harness.Controllers(); err == nil {
		helm, err = harness.Helm()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	harness.Main(m, func() error {
		_, err := apiserver.Build()
		for _, module := range []string{harness.CertManager, harness.PrometheusOperator} {
			_, missing := harness.ModuleDir(module)
			err = errors.Join(err, missing)
		}
		return errors.Join(err, os.MkdirAll(programDir, 0o755), harness.Build(programDir, "./cmd/manifold-webhook"))
	})
}

// cluster is an API server in which the chart is installed.
type cluster struct {
	t        *testing.T
	dir      string
	server   *apiserver.Server
	client   kubernetes.Interface
	dynamic  dynamic.Interface
	warnings *warnings
	balancer *balancer
	replicas int
}

// newCluster starts an API server with the definitions' CRD.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), warnings: &warnings{}}
	server, err := apiserver.Start(c.dir)
	c.must(err)
	c.server = server
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	config := server.Config()
	config.WarningHandler = c.warnings
	c.client, err = kubernetes.NewForConfig(config)
	c.must(err)
	c.dynamic, err = dynamic.NewForConfig(config)
	c.must(err)
	c.kubeconfig("admin", config.BearerToken)
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// path returns a path in the test's directory.
func (c *cluster) path(elem string) string { return filepath.Join(c.dir, elem) }

// kubeconfig writes a kubeconfig with a token, named after a user.
func (c *cluster) kubeconfig(user, token string) {
	c.t.Helper()
	ca, _ := c.server.CA()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: apiserver.URL(), CertificateAuthorityData: ca}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	c.must(clientcmd.WriteToFile(*config, c.path(user+".kubeconfig")))
}

// shell runs commands in the root of the source tree, as the administrator.
func (c *cluster) shell(commands string) string {
	c.t.Helper()
	cmd := exec.Command("sh", "-ec", commands)
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "PATH="+kubectlDir+":"+filepath.Dir(helm)+":"+os.Getenv("PATH"), "KUBECONFIG="+c.path("admin.kubeconfig"), "HOME="+c.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	return string(out)
}

// install installs the chart with admission and makes its Service reachable for the
// API server: the balancer takes the place of a node's proxy.
func (c *cluster) install(args string) {
	c.t.Helper()
	c.shell("helm install " + release + " deploy/helm/manifold -n " + namespace + " --set webhook.enabled=true " + args)
	c.serve()
}

// serve opens the Service's address and writes the webhook's kubeconfig.
func (c *cluster) serve() {
	c.t.Helper()
	ctx := context.Background()
	service, err := c.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	c.must(err)
	c.balancer = newBalancer(c.t, service.Spec.ClusterIP, int(service.Spec.Ports[0].Port))
	token, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	c.must(err)
	c.kubeconfig(name, token.Status.Token)
}

// replica is a running webhook.
type replica struct {
	c      *cluster
	cmd    *exec.Cmd
	log    string
	port   int
	ended  chan struct{}
	status error
}

// run starts a replica with its Deployment's arguments and further flags, and waits
// until it is ready.
func (c *cluster) run(flags ...string) *replica {
	c.t.Helper()
	deployment, err := c.client.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{})
	c.must(err)
	config, err := c.client.CoreV1().ConfigMaps(namespace).Get(context.Background(), name, metav1.GetOptions{})
	c.must(err)
	c.must(os.WriteFile(c.path("plugin.json"), []byte(config.Data["plugin.json"]), 0o600))
	c.replicas++
	r := &replica{c: c, port: 20000 + 10*c.replicas, ended: make(chan struct{}), log: c.path(fmt.Sprintf("webhook-%d.log", c.replicas))}
	args := slices.Clone(deployment.Spec.Template.Spec.Containers[0].Args)
	for i := range args {
		args[i] = strings.Replace(args[i], "/etc/manifold/", c.dir+"/", 1)
	}
	args = append(args, "--kubeconfig="+c.path(name+".kubeconfig"), "--host=127.0.0.1", fmt.Sprintf("--port=%d", r.port),
		fmt.Sprintf("--metrics-address=127.0.0.1:%d", r.port+1), fmt.Sprintf("--health-address=127.0.0.1:%d", r.port+2), "--drain=2s")
	log, err := os.Create(r.log)
	c.must(err)
	defer log.Close()
	r.cmd = exec.Command(filepath.Join(programDir, "manifold-webhook"), append(args, flags...)...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	c.must(r.cmd.Start())
	go func() {
		defer close(r.ended)
		r.status = r.cmd.Wait()
	}()
	c.t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it may have exited
		<-r.ended
		if c.t.Failed() {
			text, _ := os.ReadFile(r.log) // if there is one
			c.t.Logf("%s:\n%s", filepath.Base(r.log), text[max(0, len(text)-4000):])
		}
	})
	eventually(c.t, "a replica to be ready", func() bool { return r.get("/readyz", r.port+2) == nil })
	c.balancer.add(r)
	return r
}

// get requests a path of the replica over plain HTTP.
func (r *replica) get(path string, port int) error {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// metrics returns the metrics that the replica exposes.
func (r *replica) metrics() string {
	r.c.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", r.port+1))
	r.c.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	r.c.must(err)
	return string(text)
}

// stop asks the replica to stop and waits until it has.
func (r *replica) stop() {
	r.c.t.Helper()
	r.c.must(r.cmd.Process.Signal(syscall.SIGTERM))
	<-r.ended
	if r.status != nil {
		r.c.t.Errorf("the replica exited with %v", r.status)
	}
}

// patience is the timeout of every wait.
const patience = 3 * time.Minute

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("timed out waiting for %s", what)
}

// balancer forwards connections to the Service to ready replicas, as the nodes'
// proxies do by the replicas' probes.
type balancer struct {
	mu       sync.Mutex
	replicas []*replica
	next     int
}

// newBalancer adds the Service's address to this host and listens on it.
func newBalancer(t *testing.T, address string, port int) *balancer {
	t.Helper()
	lo, err := netlinksafe.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	ip := &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(address))}
	if err := netlink.AddrReplace(lo, ip); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{}
	t.Cleanup(func() { _ = l.Close() }) // ends the loop
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go b.pass(conn)
		}
	}()
	return b
}

// add adds a replica.
func (b *balancer) add(r *replica) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas = append(b.replicas, r)
}

// all returns all replicas that were ever ready.
func (b *balancer) all() []*replica {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.replicas)
}

// forget forgets all replicas.
func (b *balancer) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas, b.next = nil, 0
}

// dial connects to the next ready replica.
func (b *balancer) dial() (net.Conn, error) {
	b.mu.Lock()
	all := slices.Concat(b.replicas[b.next:], b.replicas[:b.next])
	b.next = (b.next + 1) % max(len(b.replicas), 1)
	b.mu.Unlock()
	for _, r := range all {
		if r.get("/readyz", r.port+2) == nil {
			return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port))
		}
	}
	return nil, errors.New("no replica is ready")
}

// pass forwards a connection. If no replica is ready it closes the connection,
// where a proxy refuses it.
func (b *balancer) pass(from net.Conn) {
	defer from.Close()
	to, err := b.dial()
	if err != nil {
		return
	}
	defer to.Close()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1]) // either end may close at any time
			done <- struct{}{}
		}()
	}
	<-done
}

// warnings collects the API server's warnings.
type warnings struct {
	mu   sync.Mutex
	text bytes.Buffer
}

var _ rest.WarningHandler = &warnings{}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.WriteString(text + "\n")
}

// take returns the warnings so far and forgets them.
func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.text.Reset()
	return w.text.String()
}

// definitions returns the client for definitions in namespace default.
func (c *cluster) definitions() dynamic.ResourceInterface {
	return c.dynamic.Resource(netattach.GroupVersion.WithResource(netattach.Resource)).Namespace("default")
}

// define creates a definition of a resource, or of none for "".
func (c *cluster) define(name, resource, config string) (*unstructured.Unstructured, error) {
	annotations := map[string]any{}
	if resource != "" {
		annotations[netattach.ResourceNameAnnotation] = resource
	}
	return c.defineWith(name, annotations, config)
}

// defineWith creates a definition with annotations.
func (c *cluster) defineWith(name string, annotations map[string]any, config string) (*unstructured.Unstructured, error) {
	meta := map[string]any{"name": name, "annotations": annotations}
	return c.definitions().Create(context.Background(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": netattach.GroupVersion.String(), "kind": "NetworkAttachmentDefinition", "metadata": meta, "spec": map[string]any{"config": config},
	}}, metav1.CreateOptions{})
}

// newPod returns a pod with two containers that selects networks; none for "".
func newPod(name, networks string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "one", Image: "none"}, {Name: "two", Image: "none"}},
	}}
	if networks != "" {
		pod.Annotations = map[string]string{netattach.NetworksAnnotation: networks}
	}
	return pod
}

// create creates a pod in namespace default.
func (c *cluster) create(pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
	return c.client.CoreV1().Pods("default").Create(context.Background(), pod, options)
}
