// Package webhook implements admission. It refuses definitions and pods that no node
// could serve, and adds to pods what their networks need from the scheduler and the
// kubelet.
//
// [Run] serves three reviews over TLS. Pods are mutated first: a network whose
// definition names a resource gets a request for a device (see package inject). Pods
// and definitions are then validated by package rules; its findings become causes
// with field paths, or warnings. The decision depends only on the object and the
// definitions, so any number of replicas can serve side by side.
//
// The replicas issue their own certificates (see keeper) or serve with files that
// somebody else renews. A replica is ready once its certificate is published and its
// definitions are complete. When told to stop, it keeps serving for [Options.Drain],
// so that no call meets a closed port.
//
// Anybody can connect: package connlimit bounds what the connections of one address,
// and of all, can take.
package webhook

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/connlimit"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/rules"
)

// Paths of the reviews.
const (
	pathMutatePods          = "/mutate-pods"
	pathValidatePods        = "/validate-pods"
	pathValidateDefinitions = "/validate-definitions"
)

// Options configure [Run]. Zero values are not replaced: the defaults are those of
// the program's flags.
type Options struct {
	Kubeconfig   string          // a file; empty inside a pod
	PluginConfig json.RawMessage // the plugin's configuration on the nodes; nil for the defaults
	Host         string          // address to serve on, empty for all
	Port         int
	Metrics      string        // address of /metrics, "0" for none
	Health       string        // address of /healthz and /readyz, "0" for none
	CertDir      string        // holds tls.crt and tls.key, which somebody else renews; empty to issue certificates here
	Drain        time.Duration // how long to keep serving after ctx ends

	// For certificates that are issued here.
	Namespace     string // of Secret and Service
	Secret        string
	Service       string
	Configuration string // name of the webhook configurations
	CALifetime    time.Duration
	CertLifetime  time.Duration // at most a third of CALifetime
	Settle        time.Duration // how long a new authority is published before it signs
	Interval      time.Duration // between checks of the certificates
}

// check refuses options that cannot work, as an InvalidConfig error.
func (o *Options) check() error {
	const op = "read options"
	if o.CertDir != "" {
		return nil
	}
	if o.Namespace == "" || o.Secret == "" || o.Service == "" || o.Configuration == "" {
		return cnierr.New(op, cnierr.InvalidConfig, "certificates cannot be issued without the namespace and the names of Secret, Service and webhook configurations").
			WithFix("set --namespace, --secret, --service and --configuration, or --cert-dir for certificates that another program renews")
	}
	if o.Interval <= 0 || o.CertLifetime <= 0 || o.CertLifetime > o.CALifetime/3 || o.Settle+o.Interval > o.CertLifetime/3 {
		return cnierr.New(op, cnierr.InvalidConfig, "lifetimes do not fit: authority %s, certificate %s, settle time %s, check interval %s",
			o.CALifetime, o.CertLifetime, o.Settle, o.Interval).
			WithFix("set --cert-lifetime to at most a third of --ca-lifetime, and --settle plus --check-interval to at most a third of --cert-lifetime")
	}
	return nil
}

// names returns the DNS names under which the API server calls the Service.
func (o *Options) names() []string {
	return []string{o.Service + "." + o.Namespace + ".svc", o.Service + "." + o.Namespace + ".svc.cluster.local"}
}

// server is one replica.
type server struct {
	Options
	log      *slog.Logger
	manager  manager.Manager
	informer *kube.DefinitionInformer
	keeper   *keeper // nil when the certificates come from a directory
	limiter  *connlimit.Limiter
	address  net.Addr // where the reviews are served
	stopping atomic.Bool
}

// Run serves until ctx ends, then for o.Drain more, and then until the requests in
// flight have been answered. It returns the error that kept it from starting or
// serving; stopping because ctx ended is no error.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	s := &server{Options: o, log: log}
	if err := s.check(); err != nil {
		return err
	}
	config, err := kube.Config(o.Kubeconfig)
	if err != nil {
		return err
	}
	kubeClient, err := kube.NewClient(config)
	if err != nil {
		return err
	}
	defer kubeClient.Close()
	s.informer = kube.NewDefinitionInformer(kubeClient, "")
	if err := s.assemble(config); err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		s.stopping.Store(true)
		log.Info("stopping", "after", o.Drain.String())
		time.AfterFunc(o.Drain, stop)
	})()
	return s.manager.Start(serving)
}

// assemble creates the manager and adds the reviews, the informer, the keeper and the
// probes to it.
func (s *server) assemble(config *rest.Config) error {
	r, err := rules.New(s.PluginConfig, notThere)
	if err != nil {
		return err
	}
	m, err := newMetrics(ctrlmetrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), admissionregistrationv1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("register kinds: %w", err)
	}
	// The manager's own servers have no bounds.
	s.manager, err = manager.New(config, manager.Options{Scheme: scheme, HealthProbeBindAddress: none, Metrics: metricsserver.Options{BindAddress: none}})
	if err != nil {
		return err
	}
	s.limiter = connlimit.New(bounds, m.closed.Inc)
	certificate, err := s.certificate(config, scheme, m)
	if err != nil {
		return err
	}
	err = s.manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		s.informer.Run(ctx)
		return nil
	}))
	if err != nil {
		return err
	}
	return s.serve(certificate, s.reviews(&reviewer{rules: r, definitions: s.informer, metrics: m}))
}

// none is the address of a server that there is not to be.
const none = "0"

// serve adds the servers of the reviews, the probes and the metrics.
func (s *server) serve(certificate getCertificate, reviews http.Handler) (err error) {
	// Over HTTP/1.1 a connection has one request at a time, which bounds requests too.
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, GetCertificate: certificate}
	if s.address, err = s.listen("reviews", net.JoinHostPort(s.Host, strconv.Itoa(s.Port)), config, reviews); err != nil {
		return err
	}
	if s.Health != none {
		if _, err := s.listen("probes", s.Health, nil, s.probes()); err != nil {
			return err
		}
	}
	if s.Metrics != none {
		_, err = s.listen("metrics", s.Metrics, nil, figures())
	}
	return err
}

// getCertificate is the type of tls.Config's GetCertificate.
type getCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// certificate adds to the manager what renews the serving certificate, and returns where
// to get the certificate.
func (s *server) certificate(config *rest.Config, scheme *runtime.Scheme, m *metrics) (getCertificate, error) {
	if s.CertDir == "" {
		if err := s.keep(config, scheme, m); err != nil {
			return nil, err
		}
		return s.keeper.certificate, s.manager.Add(s.keeper)
	}
	w, err := certwatcher.New(filepath.Join(s.CertDir, "tls.crt"), filepath.Join(s.CertDir, "tls.key"))
	if err != nil {
		return nil, err
	}
	return w.GetCertificate, s.manager.Add(w)
}

// keep creates the keeper. Its client has no cache, because it only ever reads three
// objects.
func (s *server) keep(config *rest.Config, scheme *runtime.Scheme, m *metrics) error {
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	s.keeper = &keeper{
		client: c, log: s.log, secret: types.NamespacedName{Namespace: s.Namespace, Name: s.Secret}, configuration: s.Configuration,
		names: s.names(), life: lifetimes{ca: s.CALifetime, serving: s.CertLifetime}, settle: s.Settle, interval: s.Interval, gauge: m.expires,
	}
	return nil
}

// reviews returns the handler of the reviews, with controller-runtime's metrics of them.
//
// The API server keeps its connections open (HTTP/1.1, one request at a time) and does
// not retry a review: a review sent just as an idle connection closes fails. A
// stopping replica therefore answers with "Connection: close". The connections that
// remain at the end of the drain have been idle throughout it.
func (s *server) reviews(r *reviewer) http.Handler {
	hooks := webhook.NewServer(webhook.Options{}) // is never started
	for path, handle := range map[string]admission.HandlerFunc{
		pathMutatePods: r.mutatePod, pathValidatePods: r.validatePod, pathValidateDefinitions: r.validateDefinition,
	} {
		review := &webhook.Admission{Handler: handle}
		hooks.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.stopping.Load() {
				w.Header().Set("Connection", "close")
			}
			review.ServeHTTP(w, r)
		}))
	}
	return hooks.WebhookMux()
}

// ready returns nil when the replica can serve, otherwise why it cannot.
func (s *server) ready(r *http.Request) error {
	switch {
	case s.stopping.Load():
		return errors.New("stopping")
	case s.keeper != nil && !s.keeper.published.Load():
		return errors.New("no certificate is published yet")
	case !s.informer.HasSynced():
		return errors.New("definitions are not complete yet")
	}
	return reachable(r.Context(), s.address)
}
