package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/manifold-cni/manifold/netattach"
)

// What one node may ask of the API server. The agent sends at most a PATCH and an Event
// per pod. The burst lets a node of 500 pods attach them all at once after a reboot,
// when every pod waits for its PATCH. Beyond the burst the node gets the kubelet's own
// default rate, so that a bug that loops does not become a burden.
const (
	defaultQPS     = 50
	defaultBurst   = 1000
	defaultTimeout = 5 * time.Second // of one request; a watch has none
	dialTimeout    = 3 * time.Second
	keepAlive      = 15 * time.Second
)

// resourcePods is the resource name of pods in the core API.
const resourcePods = "pods"

// Config returns the configuration of an API client: from a kubeconfig file or, when
// kubeconfig is empty, from the service account of the pod that this process runs in.
// QPS, Burst and Timeout are set for an agent on a node; Timeout bounds every request
// except a watch.
func Config(kubeconfig string) (*rest.Config, error) {
	cfg, err := loadConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst, cfg.Timeout = defaultQPS, defaultBurst, defaultTimeout
	return cfg, nil
}

func loadConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("in-cluster configuration: %w", err)
		}
		return cfg, nil
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}

// Client reaches the few resources of the API server that this package uses: pods,
// Events, NetworkAttachmentDefinitions, ResourceSlices, and the reviews of tokens. It
// is safe for concurrent use.
type Client struct {
	core           rest.Interface
	definitions    rest.Interface
	resources      rest.Interface
	authentication rest.Interface
	authorization  rest.Interface
	http           *http.Client
	timeout        time.Duration
}

// NewClient returns a client for cfg, as returned by [Config]. It does not
// contact the API server. cfg is not changed.
func NewClient(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	// An http.Client's timeout covers the body too, so it would cut every watch after a
	// few seconds. Each request gets a deadline instead.
	cfg.Timeout = 0
	cfg.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}).DialContext
	if cfg.RateLimiter == nil && cfg.QPS > 0 {
		// One limiter for all REST clients below.
		cfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cfg.QPS, max(cfg.Burst, 1))
	}
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	c := &Client{http: hc, timeout: timeout}
	for _, group := range []struct {
		client *rest.Interface
		path   string
		gv     schema.GroupVersion
		add    func(*runtime.Scheme) error
	}{
		{&c.core, "/api", corev1.SchemeGroupVersion, addCore},
		{&c.definitions, "/apis", netattach.GroupVersion, netattach.AddToScheme},
		{&c.resources, "/apis", resourcev1.SchemeGroupVersion, addResources},
		{&c.authentication, "/apis", authenticationv1.SchemeGroupVersion, addAuthentication},
		{&c.authorization, "/apis", authorizationv1.SchemeGroupVersion, addAuthorization},
	} {
		if *group.client, err = restClient(cfg, hc, group.path, group.gv, group.add); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// addCore registers the kinds of the core API that this package reads and writes, and
// no others.
func addCore(s *runtime.Scheme) error {
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.Event{}, &corev1.List{})
	s.AddKnownTypes(authenticationv1.SchemeGroupVersion, &authenticationv1.TokenRequest{}) // a subresource of service accounts
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return nil
}

func restClient(cfg *rest.Config, hc *http.Client, path string, gv schema.GroupVersion, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, fmt.Errorf("register %s: %w", gv, err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath, cfg.GroupVersion = path, &gv
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c, err := rest.RESTClientForConfigAndClient(cfg, hc)
	if err != nil {
		return nil, fmt.Errorf("API client for %s: %w", gv, err)
	}
	return c, nil
}

// Close closes the connections that no request is using.
func (c *Client) Close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }

// patience is the context key of [patiently].
type patience struct{}

// patiently returns ctx for requests that end with ctx alone, without a request's
// timeout.
func patiently(ctx context.Context) context.Context { return context.WithValue(ctx, patience{}, true) }

// get reads one object into out. Errors call it object.
func (c *Client) get(ctx context.Context, rc rest.Interface, resource, namespace, name, object string, out runtime.Object) error {
	if ctx.Value(patience{}) == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	err := rc.Get().MaxRetries(0).Namespace(namespace).Resource(resource).Name(name).Do(ctx).Into(out)
	switch {
	case err == nil:
		return nil
	case objectMissing(err):
		return fmt.Errorf("%s: API server: %w", object, &apiError{ErrNotFound, err})
	default:
		return fmt.Errorf("%s: API server: %w", object, &apiError{ErrUnavailable, err})
	}
}

// post sends object as a question to the API server, which answers in the same object.
func (c *Client) post(ctx context.Context, rc rest.Interface, resource string, object runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := rc.Post().MaxRetries(0).Resource(resource).Body(object).Do(ctx).Into(object); err != nil {
		return fmt.Errorf("%s: API server: %w", resource, &apiError{ErrUnavailable, err})
	}
	return nil
}

// getPod reads one pod from the API server.
func (c *Client) getPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := c.get(ctx, c.core, resourcePods, namespace, name, "pod "+namespace+"/"+name, pod); err != nil {
		return nil, err
	}
	return trimPod(pod), nil
}

// apiError is an error of the API server under one of the package's sentinels.
type apiError struct {
	kind  error
	cause error
}

func (e *apiError) Error() string   { return e.kind.Error() + ": " + e.cause.Error() }
func (e *apiError) Unwrap() []error { return []error{e.kind, e.cause} }

// objectMissing reports whether err says that one object does not exist. A 404 without
// the object's name is about the path: the resource is not served, for example because
// the CRD is not installed (yet).
func objectMissing(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	if details == nil || details.Name == "" {
		return false
	}
	for _, c := range details.Causes {
		// client-go fills in the name itself when the answer was no Status object.
		if c.Type == metav1.CauseTypeUnexpectedServerResponse {
			return false
		}
	}
	return true
}
