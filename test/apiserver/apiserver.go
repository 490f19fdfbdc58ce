// Package apiserver runs a real kube-apiserver and its etcd for tests, on the loopback
// of the test's network namespace.
//
// [Start] starts an empty cluster within seconds: an API server with RBAC, TLS and an
// audit log of every request, but no controllers and no nodes. [StartCluster] adds the
// controllers and lets a node join. [Server.User] creates users, which are service
// accounts with real tokens. The programs are built once per version, see [Build].
package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/test/harness"
)

// Ports on the loopback of the test's network namespace.
const (
	apiPort  = 6443
	etcdPort = 2379
	peerPort = 2380
)

// startTime limits how long a program may take to answer. It allows for a busy machine.
const startTime = 5 * time.Minute

// Users with static tokens: the administrator, and a node, whose name follows this
// prefix.
const (
	admin    = "admin"
	nodeUser = "system:node:"
)

// Server is a running API server. Only one test at a time may use its methods.
type Server struct {
	dir, bin string
	pki      *pki
	tokens   map[string]string // by user
	node     string            // the node of a whole cluster; empty for the API server alone
	etcd     *harness.Process
	api      *harness.Process
	// controllers are kube-controller-manager and kube-scheduler.
	controllers []*harness.Process
}

// Build builds etcd and kube-apiserver, if missing, into a directory outside the tree
// and returns it. Building them takes some minutes.
func Build() (string, error) { return harness.ControlPlane() }

// Start starts an empty cluster with its files in dir.
func Start(dir string) (*Server, error) { return start(dir, "") }

// StartCluster starts a cluster with controllers and a scheduler. The kubelet of the
// named node can join it with the kubeconfig of [Server.NodeKubeconfig].
func StartCluster(dir, node string) (*Server, error) {
	if _, err := harness.Controllers(); err != nil {
		return nil, err
	}
	return start(dir, node)
}

func start(dir, node string) (*Server, error) {
	bin, err := Build()
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin, node: node, tokens: map[string]string{}}
	if s.pki, err = newPKI(dir); err != nil {
		return nil, err
	}
	users := map[string]string{admin: "system:masters"}
	if node != "" {
		users[nodeUser+node] = "system:nodes"
	}
	tokens := ""
	for user, group := range users {
		s.tokens[user] = rand.Text()
		tokens += fmt.Sprintf("%s,%s,%s,%s\n", s.tokens[user], user, user, group)
	}
	files := map[string]string{
		"tokens.csv": tokens,
		"audit.yaml": "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted, Panic]\nrules: [{level: Metadata}]\n",
	}
	for name, content := range files {
		if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if s.etcd, err = s.run("etcd", s.etcdFlags()...); err != nil {
		return nil, err
	}
	if err := s.Restart(); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// startControllers starts the controller manager and the scheduler as the
// administrator. It waits for the service account of namespace default, without which
// no pod is admitted.
func (s *Server) startControllers() error {
	kubeconfig, err := s.AdminKubeconfig()
	if err != nil {
		return err
	}
	flags := []string{"--kubeconfig", kubeconfig, "--bind-address", "127.0.0.1", "--leader-elect=false"}
	programs := map[string][]string{
		"kube-scheduler": flags,
		"kube-controller-manager": append(slices.Clone(flags),
			"--service-account-private-key-file", s.path("sa.key"), "--root-ca-file", s.path("ca.crt"),
			// A node whose kubelet is slow to report, or that has no power for a while,
			// keeps its pods.
			"--node-monitor-grace-period", "1h"),
	}
	for name, flags := range programs {
		p, err := s.run(name, flags...)
		if err != nil {
			return err
		}
		s.controllers = append(s.controllers, p)
	}
	client, err := s.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	return wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			return err == nil, nil
		}
		return false, err
	})
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) etcdFlags() []string {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPort), fmt.Sprintf("http://127.0.0.1:%d", peerPort)
	return []string{
		"--data-dir", s.path("etcd.data"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		"--unsafe-no-fsync", "--log-level", "warn",
	}
}

func (s *Server) apiFlags() []string {
	flags := []string{
		"--etcd-servers", fmt.Sprintf("http://127.0.0.1:%d", etcdPort), "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--secure-port", fmt.Sprint(apiPort), "--endpoint-reconciler-type", "none",
		"--tls-cert-file", s.path("api.crt"), "--tls-private-key-file", s.path("api.key"), "--token-auth-file", s.path("tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", s.path("sa.pub"),
		"--service-account-signing-key-file", s.path("sa.key"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--audit-policy-file", s.path("audit.yaml"), "--audit-log-path", s.path("audit.log"), "--audit-log-mode", "blocking", "--profiling=false",
	}
	if s.node == "" {
		// Without controllers nothing creates the service accounts that this plugin
		// requires.
		return append(flags, "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount")
	}
	return append(flags, "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--allow-privileged", "--kubelet-preferred-address-types", "InternalIP")
}

func (s *Server) run(name string, flags ...string) (*harness.Process, error) {
	return harness.StartProcess(s.path(name+".log"), exec.Command(filepath.Join(s.bin, name), flags...))
}

// Restart starts the API server, which must not be running, on the existing etcd and
// waits until it is ready. In a whole cluster it starts the controllers too.
func (s *Server) Restart() error {
	err := s.startAPI()
	if err == nil && s.node != "" {
		err = s.startControllers()
	}
	return err
}

func (s *Server) startAPI() (err error) {
	if s.api, err = s.run("kube-apiserver", s.apiFlags()...); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pki.pool}}, Timeout: 20 * time.Second}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, URL()+"/readyz", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+s.tokens[admin])
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close() // only the status matters
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for kube-apiserver to be ready: %w; see %s", err, s.path("kube-apiserver.log"))
		}
	}
}

// CPU returns the CPU time that the API server and etcd have used so far.
func (s *Server) CPU() (time.Duration, error) {
	api, err := harness.ProcessCPU(s.api.PID())
	etcd, err2 := harness.ProcessCPU(s.etcd.PID())
	return api + etcd, errors.Join(err, err2)
}

// PID returns the process ID of the API server, which must be running.
func (s *Server) PID() int { return s.api.PID() }

// Kill kills the API server but not etcd. It kills the controllers too: they would take
// up to a minute to notice that the API server is back.
func (s *Server) Kill() error {
	err := s.api.Kill()
	for _, p := range s.controllers {
		err = errors.Join(err, p.Kill())
	}
	s.api, s.controllers = nil, nil
	return err
}

// Pause stops the API server from answering until [Server.Resume]; clients may wait for
// it.
func (s *Server) Pause() error { return syscall.Kill(s.api.PID(), syscall.SIGSTOP) }

// Resume undoes [Server.Pause].
func (s *Server) Resume() error { return syscall.Kill(s.api.PID(), syscall.SIGCONT) }

// Stop kills the API server, the controllers and etcd.
func (s *Server) Stop() error { return errors.Join(s.Kill(), s.etcd.Kill()) }

// URL returns the API server's address.
func URL() string { return fmt.Sprintf("https://127.0.0.1:%d", apiPort) }

// CA returns the certificate that signed the API server's, as PEM and as a pool.
func (s *Server) CA() ([]byte, *x509.CertPool) { return s.pki.caPEM, s.pki.pool }

// Config returns the administrator's client configuration.
func (s *Server) Config() *rest.Config {
	return &rest.Config{Host: URL(), BearerToken: s.tokens[admin], TLSClientConfig: rest.TLSClientConfig{CAData: s.pki.caPEM}, QPS: 1000, Burst: 1000}
}

// Client returns a client with the administrator's rights.
func (s *Server) Client() (kubernetes.Interface, error) { return kubernetes.NewForConfig(s.Config()) }

// CertFiles returns the paths of the API server's certificate and key, for a proxy at
// the same address.
func (s *Server) CertFiles() (cert, key string) { return s.path("api.crt"), s.path("api.key") }
