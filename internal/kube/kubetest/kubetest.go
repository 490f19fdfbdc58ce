// Package kubetest is a small API server for tests and demonstrations. It speaks real
// HTTP and enough of the Kubernetes API for package kube: pods, Events,
// NetworkAttachmentDefinitions and ResourceSlices, with get, list, watch (bookmarks,
// streamed lists, field selectors, expiry), create, and JSON merge patch with the UID
// as precondition.
//
// It holds state like the real one: a patch can be read back, and every change raises
// the resource version and reaches the watches that select it. It also fails on
// request: see [Server.FailWith], [Server.FailNext], [Server.Pause], [Server.Stop],
// [Server.CloseWatches], [Server.Expire].
package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
)

// The resources that are served, with their API versions and kinds.
const (
	resourcePods   = "pods"
	resourceEvents = "events"
	resourceSlices = "resourceslices"
)

var kinds = map[string]metav1.TypeMeta{
	resourcePods:       {APIVersion: "v1", Kind: "Pod"},
	resourceEvents:     {APIVersion: "v1", Kind: "Event"},
	netattach.Resource: {APIVersion: netattach.GroupVersion.String(), Kind: "NetworkAttachmentDefinition"},
	resourceSlices:     {APIVersion: resourcev1.SchemeGroupVersion.String(), Kind: "ResourceSlice"},
}

// object is an API object as JSON, so that fields unknown to Go types survive.
type object = map[string]any

// change is one step in the history that watches follow.
type change struct {
	version  int64
	resource string
	was, is  object // nil when created, or deleted
}

// Request is a request that the server received.
type Request struct {
	Method      string
	Path        string
	Query       string // encoded
	ContentType string
	UserAgent   string
	Body        string
	Code        int // of the answer; 0 while the request is under way, or after it was cut off
}

// Server is the API server. Its methods are safe for concurrent use.
type Server struct {
	addr string

	mu       sync.Mutex
	http     *http.Server  // nil while stopped
	served   chan struct{} // closed when http has ended
	objects  map[string]map[string]object
	version  int64
	oldest   int64 // watches from before this version have expired
	history  []change
	changed  chan struct{} // closed and replaced at every change
	cut      chan struct{} // closed and replaced to end all watches
	paused   chan struct{} // not nil while paused, closed to resume
	requests []*Request
	failAll  int
	failNext []int
	noStream bool
	noFollow string // resource that may be neither listed nor watched
}

// Start starts a server on a free port of the loopback interface. Like
// net/http/httptest, it panics when there is none. Stop it with [Server.Stop].
func Start() *Server {
	s := &Server{
		addr: "127.0.0.1:0", version: 1,
		objects: map[string]map[string]object{resourcePods: {}, resourceEvents: {}, netattach.Resource: {}, resourceSlices: {}},
		changed: make(chan struct{}), cut: make(chan struct{}),
	}
	if err := s.Restart(); err != nil {
		panic("kubetest: " + err.Error())
	}
	return s
}

// Restart listens again, at the same address, after [Server.Stop]. State and history
// are as before.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.addr = l.Addr().String()
	srv, served := &http.Server{Handler: http.HandlerFunc(s.serve)}, make(chan struct{})
	s.http, s.served = srv, served
	go func() {
		defer close(served)
		_ = srv.Serve(l) // returns http.ErrServerClosed
	}()
	return nil
}

// Stop closes every connection and refuses new ones: the API server is down. A
// second Stop does nothing.
func (s *Server) Stop() {
	s.Resume() // otherwise paused requests would outlive their connections
	s.mu.Lock()
	srv, served := s.http, s.served
	s.http = nil
	s.mu.Unlock()
	if srv != nil {
		_ = srv.Close() // an error concerns a connection that is already gone
		<-served
	}
}

// Pause makes the server accept requests and never answer them, like one behind a
// broken network, until [Server.Resume]. Open watches stay silent.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused == nil {
		s.paused = make(chan struct{})
	}
}

// Resume ends [Server.Pause]; waiting requests are answered.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused != nil {
		close(s.paused)
		s.paused = nil
	}
}

// FailWith answers every request from now on with this HTTP code and a matching Status
// object; 0 ends that.
func (s *Server) FailWith(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failAll = code
}

// FailNext answers the next requests with these codes, one each.
func (s *Server) FailNext(codes ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failNext = slices.Clone(codes)
}

// DisableStreaming refuses streamed lists (sendInitialEvents), as API servers
// before 1.32 do.
func (s *Server) DisableStreaming() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noStream = true
}

// ForbidFollowing refuses from now on to list or watch a resource, as for an account
// that may only get its objects. An empty resource ends that.
func (s *Server) ForbidFollowing(resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noFollow = resource
}

// CloseWatches ends every open watch, as API servers do every few minutes.
func (s *Server) CloseWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Expire forgets the history: a watch that resumes from an earlier version is answered
// 410.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.oldest, s.history = s.version, nil
}

// URL returns the server's address, http://host:port.
func (s *Server) URL() string { return "http://" + s.addr }

// Kubeconfig writes a kubeconfig file for the server into dir and returns its
// path.
func (s *Server) Kubeconfig(dir string) (string, error) {
	path := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: kubetest
  cluster:
    server: %s
users:
- name: kubetest
  user: {}
contexts:
- name: kubetest
  context:
    cluster: kubetest
    user: kubetest
current-context: kubetest
`, s.URL())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("kubeconfig: %w", err)
	}
	return path, nil
}

// Requests returns the requests so far, in order of arrival.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Request, 0, len(s.requests))
	for _, r := range s.requests {
		out = append(out, *r)
	}
	return out
}

// ForgetRequests empties the list of requests.
func (s *Server) ForgetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// AddPod creates the pod or replaces the one of its name. The namespace defaults to
// "default"; a pod without a UID gets one.
func (s *Server) AddPod(pod *corev1.Pod) { s.put(resourcePods, pod) }

// DeletePod deletes a pod; a missing one is ignored.
func (s *Server) DeletePod(namespace, name string) { s.remove(resourcePods, namespace, name) }

// Pod returns a pod as it is now, or nil.
func (s *Server) Pod(namespace, name string) *corev1.Pod {
	return find[corev1.Pod](s, resourcePods, namespace, name)
}

// AddDefinition creates the definition or replaces the one of its name. The namespace
// defaults to "default"; a definition without a UID gets one.
func (s *Server) AddDefinition(def *netattach.Definition) { s.put(netattach.Resource, def) }

// DeleteDefinition deletes a definition; a missing one is ignored.
func (s *Server) DeleteDefinition(namespace, name string) {
	s.remove(netattach.Resource, namespace, name)
}

// AddSlice creates the ResourceSlice or replaces the one of its name.
func (s *Server) AddSlice(slice *resourcev1.ResourceSlice) { s.put(resourceSlices, slice) }

// Events returns the present Events, sorted by namespace and name.
func (s *Server) Events() []corev1.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []corev1.Event
	for _, key := range sortedKeys(s.objects[resourceEvents]) {
		out = append(out, *decode[corev1.Event](s.objects[resourceEvents][key]))
	}
	return out
}

// DeleteEvents deletes all Events, as the end of their time to live does.
func (s *Server) DeleteEvents() {
	for _, e := range s.Events() {
		s.remove(resourceEvents, e.Namespace, e.Name)
	}
}

func find[T any](s *Server, resource, namespace, name string) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	obj, ok := s.objects[resource][namespace+"/"+name]
	if !ok {
		return nil
	}
	return decode[T](obj)
}

// put stores a typed object. The object comes from a test, so a failure to encode it is
// the test's mistake.
func (s *Server) put(resource string, typed any) {
	raw, err := json.Marshal(typed)
	if err != nil {
		panic("kubetest: " + err.Error())
	}
	var obj object
	if err := json.Unmarshal(raw, &obj); err != nil {
		panic("kubetest: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(resource, obj)
}

// store sets the fields that every stored object has, and records the change. The
// caller holds s.mu.
func (s *Server) store(resource string, obj object) {
	meta := maps.Clone(child(obj, "metadata")) // a merged object shares it with the old one
	obj["metadata"] = meta
	if text(meta, "namespace") == "" {
		meta["namespace"] = metav1.NamespaceDefault
	}
	s.version++
	if text(meta, "uid") == "" {
		meta["uid"] = fmt.Sprintf("%08d-0000-4000-8000-000000000000", s.version)
	}
	obj["apiVersion"], obj["kind"] = kinds[resource].APIVersion, kinds[resource].Kind
	meta["resourceVersion"] = strconv.FormatInt(s.version, 10)
	key := objectKey(obj)
	s.history = append(s.history, change{s.version, resource, s.objects[resource][key], obj})
	s.objects[resource][key] = obj
	s.announce()
}

func (s *Server) remove(resource, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := namespace + "/" + name
	obj, ok := s.objects[resource][key]
	if !ok {
		return
	}
	s.version++
	s.history = append(s.history, change{s.version, resource, obj, nil})
	delete(s.objects[resource], key)
	s.announce()
}

// announce wakes the watches. The caller holds s.mu.
func (s *Server) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// decode converts a stored object into the Go type that it came from, or that the
// caller knows to fit.
func decode[T any](obj object) *T {
	out := new(T)
	raw, err := json.Marshal(obj)
	if err == nil {
		err = json.Unmarshal(raw, out)
	}
	if err != nil {
		panic("kubetest: " + err.Error())
	}
	return out
}

func objectKey(obj object) string {
	meta := child(obj, "metadata")
	return types.NamespacedName{Namespace: text(meta, "namespace"), Name: text(meta, "name")}.String()
}

// child returns obj[key] as an object, creating it if it is missing.
func child(obj object, key string) object { //nolint:unparam // reads like the document
	if c, ok := obj[key].(object); ok {
		return c
	}
	c := object{}
	obj[key] = c
	return c
}

// text returns obj[key] if it is a string.
func text(obj object, key string) string {
	v, _ := obj[key].(string)
	return v
}

func sortedKeys(m map[string]object) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
