//go:build apiserver

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

func init() {
	builds = append(builds, func() error {
		_, err := apiserver.Build()
		return err
	})
}

// agentRules are the agent's permissions at the API server if it watches pods
// there.
var agentRules = []rbacv1.PolicyRule{
	{APIGroups: []string{netattach.GroupVersion.Group}, Resources: []string{netattach.Resource}, Verbs: []string{"get", "list", "watch"}},
	{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch", "patch"}},
	{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
}

// realNode is a node of a cluster with a real API server. Its agent reaches the API
// server through a proxy that can misbehave.
type realNode struct {
	*kubeletNode
	server *apiserver.Server
	client kubernetes.Interface
	defs   dynamic.ResourceInterface
	agent  *apiserver.User
	proxy  *proxy
}

func newRealNode(t *testing.T) *realNode {
	t.Helper()
	n := &realNode{kubeletNode: newKubeletNode(t)}
	dir := n.path("apiserver")
	n.must(os.MkdirAll(dir, 0o700))
	var err error
	n.server, err = apiserver.Start(dir)
	n.must(err)
	t.Cleanup(func() {
		if err := n.server.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", tail(n.read("agent.log")))
			t.Logf("the API server's log:\n%s", tail(n.read("apiserver/kube-apiserver.log")))
		}
	})
	n.client, err = n.server.Client()
	n.must(err)
	n.must(n.server.InstallDefinitions())
	n.defs, err = n.server.Definitions("default")
	n.must(err)
	n.proxy = startProxy(t, n.server)
	n.agent, err = n.server.User(n.dir, "manifold", n.proxy.url, agentRules)
	n.must(err)
	n.agentConfig(map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "podsAPI": "-",
		"snapshot": n.path("state/snapshot"), "apiServer": n.agent.Kubeconfig, "listen": "127.0.0.1:0", "cniConfig": "-",
	})
	return n
}

// defineReal creates a definition with a spec, in namespace default.
func (n *realNode) defineReal(name string, spec map[string]any) error {
	_, err := n.defs.Create(context.Background(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": netattach.GroupVersion.String(), "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name}, "spec": spec,
	}}, metav1.CreateOptions{})
	return err
}

// plain defines the network of warm at the API server.
func (n *realNode) plain() {
	n.t.Helper()
	n.must(n.defineReal("plain", map[string]any{"config": n.bridge("plain", "10.89.0.0/16")}))
}

// create creates a pod at the API server and on the kubelet.
func (n *realNode) create(name, networks string) *pod {
	n.t.Helper()
	p, err := n.client.CoreV1().Pods("default").Create(context.Background(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{netattach.NetworksAnnotation: networks, "keep": "this"}, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: "node1", Containers: []corev1.Container{{Name: "c", Image: "none"}},
			ResourceClaims: []corev1.PodResourceClaim{{Name: "claim", ResourceClaimName: new("none")}},
		},
	}, metav1.CreateOptions{})
	n.must(err)
	n.kubelet.SetClaim(fakekubelet.Claim{Name: "none"}) // allocated, without a device
	_, err = n.kubelet.AddPod(p, nil)
	n.must(err)
	return n.sandbox(name, string(p.UID))
}

// get reads a pod.
func (n *realNode) get(name string) *corev1.Pod {
	n.t.Helper()
	p, err := n.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	n.must(err)
	return p
}

// proxy is a proxy between the agent and the API server.
type proxy struct {
	url string

	mu     sync.Mutex
	delay  time.Duration
	answer func(*http.Request) int // status to answer with, 0 to pass the request on
	live   map[context.Context]context.CancelFunc
}

func startProxy(t *testing.T, s *apiserver.Server) *proxy {
	t.Helper()
	target, err := url.Parse(apiserver.URL())
	if err != nil {
		t.Fatal(err)
	}
	_, pool := s.CA()
	p := &proxy{url: "https://127.0.0.1:7443", live: map[context.Context]context.CancelFunc{}}
	reverse := httputil.NewSingleHostReverseProxy(target)
	reverse.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	reverse.FlushInterval = -1
	reverse.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	server := &http.Server{Addr: "127.0.0.1:7443", Handler: p.handler(reverse), ErrorLog: nil}
	go func() { _ = server.ListenAndServeTLS(s.CertFiles()) }() // ends with Close
	t.Cleanup(func() { _ = server.Close() })
	return p
}

// handler misbehaves as configured, or else passes requests on to next.
func (p *proxy) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		p.mu.Lock()
		delay, answer := p.delay, p.answer
		p.live[ctx] = cancel
		p.mu.Unlock()
		defer func() {
			cancel()
			p.mu.Lock()
			delete(p.live, ctx)
			p.mu.Unlock()
		}()
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		if answer != nil {
			if code := answer(r); code != 0 {
				w.Header().Set("Retry-After", "1")
				http.Error(w, fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d}`, code), code)
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// behave sets how the proxy answers from now on.
func (p *proxy) behave(delay time.Duration, answer func(*http.Request) int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay, p.answer = delay, answer
}

// cut ends all current requests, above all watches.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cancel := range p.live {
		cancel()
	}
}

// tail returns the end of a log.
func tail(text string) string { return text[max(0, len(text)-8000):] }
