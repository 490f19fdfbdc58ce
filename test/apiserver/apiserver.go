// Package apiserver runs a real kube-apiserver and its etcd for tests, on the
// loopback of the network namespace that the test is in.
//
// [Start] gives an empty cluster within seconds: an API server with RBAC, TLS
// and an audit log of every request, no controllers, no nodes. Users are made by
// [Server.User], which are service accounts with real tokens. The programs are
// built once per version, see [Build].
package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/test/harness"
)

// Ports on the loopback of the test's own network namespace.
const (
	apiPort  = 6443
	etcdPort = 2379
	peerPort = 2380
)

// startTime bounds how long a program may take to answer.
const startTime = 2 * time.Minute

// Server is a running API server. Its methods are for one test at a time.
type Server struct {
	dir, bin string
	pki      *pki
	token    string // of an administrator
	etcd     *process
	api      *process
}

// Build builds etcd and kube-apiserver into a directory outside the tree, where
// they are not there yet, and returns it. A cold build takes some minutes.
func Build() (string, error) { return harness.ControlPlane() }

// Start starts an empty cluster whose files are in dir.
func Start(dir string) (*Server, error) {
	bin, err := Build()
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin}
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	s.token = hex.EncodeToString(token)
	if s.pki, err = newPKI(dir); err != nil {
		return nil, err
	}
	files := map[string]string{
		"tokens.csv": s.token + ",admin,admin,system:masters\n",
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
	return []string{
		"--etcd-servers", fmt.Sprintf("http://127.0.0.1:%d", etcdPort), "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--secure-port", fmt.Sprint(apiPort), "--endpoint-reconciler-type", "none",
		"--tls-cert-file", s.path("api.crt"), "--tls-private-key-file", s.path("api.key"), "--token-auth-file", s.path("tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", s.path("sa.pub"),
		"--service-account-signing-key-file", s.path("sa.key"), "--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "RBAC",
		// Without controllers nobody makes the service account that it demands of pods.
		"--disable-admission-plugins", "ServiceAccount", "--profiling=false",
		"--audit-policy-file", s.path("audit.yaml"), "--audit-log-path", s.path("audit.log"), "--audit-log-mode", "blocking",
	}
}

// process is a running program.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// run starts a program whose output goes to a file of its name. It dies with
// this process: the kernel sends it the signal when the thread that started it
// ends, so that thread stays until the program has ended.
func (s *Server) run(name string, flags ...string) (*process, error) {
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, name), flags...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p, started := &process{cmd: cmd, ended: make(chan struct{})}, make(chan error)
	go func() {
		defer close(p.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed when it is not needed any more
		}
	}()
	return p, <-started
}

// Restart starts the API server, which is not running, over what etcd holds, and
// waits until it is ready.
func (s *Server) Restart() (err error) {
	if s.api, err = s.run("kube-apiserver", s.apiFlags()...); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pki.pool}}, Timeout: 2 * time.Second}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, URL()+"/readyz", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+s.token)
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
			return fmt.Errorf("kube-apiserver is not ready: %w; see %s", err, s.path("kube-apiserver.log"))
		}
	}
}

// PID is the API server's process, which must run.
func (s *Server) PID() int { return s.api.cmd.Process.Pid }

// Kill ends the API server at once; etcd stays.
func (s *Server) Kill() error { return end(&s.api) }

// Stop ends everything.
func (s *Server) Stop() error { return errors.Join(end(&s.api), end(&s.etcd)) }

// end kills a process, which may have ended.
func end(p **process) error {
	if *p == nil {
		return nil
	}
	if err := (*p).cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-(*p).ended
	*p = nil
	return nil
}

// URL is the API server's address.
func URL() string { return fmt.Sprintf("https://127.0.0.1:%d", apiPort) }

// CA returns the certificate that signed the API server's, PEM, and a pool of it.
func (s *Server) CA() ([]byte, *x509.CertPool) { return s.pki.caPEM, s.pki.pool }

// Config is the administrator's access.
func (s *Server) Config() *rest.Config {
	return &rest.Config{Host: URL(), BearerToken: s.token, TLSClientConfig: rest.TLSClientConfig{CAData: s.pki.caPEM}, QPS: 1000, Burst: 1000}
}

// Client is the administrator's client.
func (s *Server) Client() (kubernetes.Interface, error) { return kubernetes.NewForConfig(s.Config()) }

// CertFiles returns the files of the API server's certificate and key, for a
// proxy on the same address.
func (s *Server) CertFiles() (cert, key string) { return s.path("api.crt"), s.path("api.key") }
