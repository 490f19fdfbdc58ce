//go:build apiserver

package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/monitoring"
)

const vfs = "vendor.example/vfs"

// refusal checks that the API server rejected an object with a cause at field.
func refusal(t *testing.T, what string, err error, field string) {
	t.Helper()
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	for _, cause := range status.Status().Details.Causes {
		if cause.Field == field {
			return
		}
	}
	t.Errorf("%s: no cause at %s: %+v", what, field, status.Status().Details.Causes)
}

func TestRealAPIAdmission(t *testing.T) {
	c := newCluster(t)
	c.install("--set clusterNetwork=net-a --set config.namespaceIsolation=true")
	replica := c.run()

	t.Run("definitions", func(t *testing.T) {
		for name, bad := range map[string]struct{ resource, config, field string }{
			"json":     {"", "{", "spec.config"},
			"path":     {"", `{"type":"../../bin/sh"}`, "spec.config"},
			"version":  {"", `{"cniVersion":"9.0.0","type":"bridge"}`, "spec.config"},
			"resource": {"vfs", `{"type":"host-device"}`, "metadata.annotations[k8s.v1.cni.cncf.io/resourceName]"},
			"device":   {vfs, `{"type":"host-device","deviceID":"0000:21:10.0"}`, "spec.config"},
		} {
			_, err := c.define(name, bad.resource, bad.config)
			refusal(t, name, err, bad.field)
		}
		_, err := c.define("vf", vfs, `{"cniVersion":"1.0.0","type":"host-device"}`)
		c.must(err)
		_, err = c.define("odd", "", `{"type":"sriov"}`)
		if text := c.warnings.take(); err != nil || !strings.Contains(text, "needs a device") {
			t.Errorf("%v, warnings %q", err, text)
		}
	})
	t.Run("pods", func(t *testing.T) { c.reviewsPods(t) })
	if text := replica.metrics(); !regexp.MustCompile(`(?m)^manifold_webhook_injected_devices_total 3$`).MatchString(text) ||
		!strings.Contains(text, `manifold_webhook_certificate_expiry_timestamp_seconds{certificate="authority"}`) ||
		!strings.Contains(text, `manifold_webhook_findings_total{kind="NetworkAttachmentDefinition",severity="error"} 5`) {
		t.Errorf("metrics:\n%s", text)
	}
	t.Run("monitoring", func(t *testing.T) { monitored(t, replica.metrics()) })
}

// monitored checks that the webhook exposes all metrics and labels that the alert
// rules and the dashboard query, once everything has happened.
func monitored(t *testing.T, exposition string) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(exposition))
	if err != nil {
		t.Fatal(err)
	}
	labels := func(series string) ([]string, bool) {
		f := families[series]
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if name, ok := strings.CutSuffix(series, part); ok && f == nil {
				f = families[name]
			}
		}
		if f == nil {
			return nil, false
		}
		out := []string{"le"}
		for _, l := range f.GetMetric()[0].GetLabel() {
			out = append(out, l.GetName())
		}
		return out, true
	}
	queries, err := monitoring.Panels(repository)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := monitoring.Rules(repository)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		queries[r.Alert] = []string{r.Expr}
	}
	asked := 0
	for where, exprs := range queries {
		for _, e := range exprs {
			if !monitoring.OfWebhook(e) {
				continue
			}
			asked++
			for _, m := range monitoring.Missing(e, labels) {
				t.Errorf("%s: %s", where, m)
			}
		}
	}
	if asked < 10 {
		t.Errorf("only %d queries are about the webhook", asked)
	}
}

// reviewsPods checks the review of pods; the definition vf exists.
func (c *cluster) reviewsPods(t *testing.T) {
	pod, err := c.create(newPod("injected", `[{"name":"vf"},{"name":"vf","manifold.dev/container":"two"}]`), metav1.CreateOptions{})
	c.must(err) // the definition is seconds old at most: the cache may not have it yet
	for _, container := range pod.Spec.Containers {
		request, limit := container.Resources.Requests[vfs], container.Resources.Limits[vfs]
		if request.Value() != 1 || limit.Value() != 1 {
			t.Errorf("container %s: %+v", container.Name, container.Resources)
		}
	}
	plain, err := c.create(newPod("plain", ""), metav1.CreateOptions{})
	if err != nil || len(plain.Spec.Containers[0].Resources.Limits) > 0 {
		t.Errorf("a pod without annotation: %v, %+v", err, plain)
	}
	_, err = c.create(newPod("twice", "vf@x,vf@x"), metav1.CreateOptions{})
	refusal(t, "interface twice", err, "metadata.annotations[k8s.v1.cni.cncf.io/networks]")
	_, err = c.create(newPod("far", "kube-public/any"), metav1.CreateOptions{}) // whether it exists or not
	refusal(t, "another namespace's", err, "metadata.annotations[k8s.v1.cni.cncf.io/networks]")
	_, err = c.create(newPod("absent", "any"), metav1.CreateOptions{})
	if text := c.warnings.take(); err != nil || !strings.Contains(text, "does not exist") {
		t.Errorf("absent definition: %v, warnings %q", err, text)
	}
	_, err = c.defineWith("racked", map[string]any{netattach.NodeSelectorAnnotation: "rack=a"}, `{"type":"bridge"}`)
	c.must(err)
	pod, err = c.create(newPod("racked", "racked"), metav1.CreateOptions{})
	if err != nil || pod.Spec.NodeSelector["rack"] != "a" {
		t.Errorf("a pod of a network that some nodes have: %v, %+v", err, pod)
	}
	elsewhere := newPod("elsewhere", "racked")
	elsewhere.Spec.NodeSelector = map[string]string{"rack": "b"}
	pod, err = c.create(elsewhere, metav1.CreateOptions{})
	if text := c.warnings.take(); err != nil || pod.Spec.NodeSelector["rack"] != "b" || !strings.Contains(text, "is for nodes with rack=a") {
		t.Errorf("a pod that asks for other nodes: %v, %+v, warnings %q", err, pod, text)
	}
	volume := newPod("volume", "vf")
	volume.Annotations[netattach.StatusVolumeAnnotation] = "/etc/net"
	pod, err = c.create(volume, metav1.CreateOptions{})
	c.must(err)
	if last := pod.Spec.Volumes[len(pod.Spec.Volumes)-1]; last.DownwardAPI == nil || len(pod.Spec.Containers[1].VolumeMounts) == 0 {
		t.Errorf("volumes %+v, mounts %+v", pod.Spec.Volumes, pod.Spec.Containers[1].VolumeMounts)
	}
}

// TestRealAPIWebhookDown proves that objects that do not need the webhook do not
// notice that it is down.
func TestRealAPIWebhookDown(t *testing.T) {
	c := newCluster(t)
	c.install("")
	replica := c.run()
	_, err := c.define("vf", vfs, `{"type":"host-device"}`)
	c.must(err)
	replica.stop()
	if _, err := c.create(newPod("plain", ""), metav1.CreateOptions{}); err != nil {
		t.Errorf("a pod without annotation: %v", err)
	}
	if _, err := c.create(newPod("selecting", "vf"), metav1.CreateOptions{}); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("a pod with annotation: %v", err)
	}
	mirror := newPod("mirror", "vf")
	mirror.Annotations[corev1.MirrorPodAnnotationKey], mirror.Spec.NodeName = "hash", "node1"
	if _, err := c.create(mirror, metav1.CreateOptions{}); err != nil {
		t.Errorf("a mirror of a static pod: %v", err)
	}
	ctx := context.Background()
	if _, err := c.define("later", "", `{"type":"bridge"}`); err == nil {
		t.Error("a definition passed without review")
	}
	label := []byte(`{"metadata":{"labels":{"a":"b"},"finalizers":["x.example/y"]}}`)
	if _, err := c.definitions().Patch(ctx, "vf", types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Errorf("a definition cannot be labelled: %v", err)
	}
	c.must(c.definitions().Delete(ctx, "vf", metav1.DeleteOptions{}))
	if _, err := c.definitions().Patch(ctx, "vf", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("a definition that is deleted keeps its finalizer: %v", err)
	}
	// The way out for one namespace.
	out := []byte(`{"metadata":{"labels":{"manifold.dev/admission":"ignore"}}}`)
	_, err = c.client.CoreV1().Namespaces().Patch(ctx, "default", types.MergePatchType, out, metav1.PatchOptions{})
	c.must(err)
	eventually(t, "the namespace to be excluded", func() bool {
		_, err := c.create(newPod("selecting", "vf"), metav1.CreateOptions{})
		return err == nil || apierrors.IsAlreadyExists(err)
	})
}

// TestRealAPIManyPodsAtOnce creates 200 pods at once.
func TestRealAPIManyPodsAtOnce(t *testing.T) {
	c := newCluster(t)
	c.install("")
	c.run()
	_, err := c.define("vf", vfs, `{"type":"host-device"}`)
	c.must(err)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			pod, err := c.create(newPod(fmt.Sprintf("pod-%d", i), "vf,vf"), metav1.CreateOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			if limit := pod.Spec.Containers[0].Resources.Limits[vfs]; limit.Value() != 2 {
				t.Errorf("pod %d: %+v", i, pod.Spec.Containers[0].Resources)
			}
		})
	}
	wg.Wait()
}

// load creates pods until it is stopped, and counts them.
type load struct {
	stop    atomic.Bool
	created atomic.Int64
	wg      sync.WaitGroup
}

// startLoad starts to create pods by dry run, so that none is stored.
func (c *cluster) startLoad() *load {
	l := &load{}
	for i := range 4 {
		l.wg.Go(func() {
			for !l.stop.Load() {
				pod, err := c.create(newPod(fmt.Sprintf("load-%d", i), "vf"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				if err != nil {
					c.t.Errorf("after %d pods: %v", l.created.Load(), err)
					return
				}
				if limit := pod.Spec.Containers[0].Resources.Limits[vfs]; limit.Value() != 1 {
					c.t.Errorf("a pod did not get its device: %+v", pod.Spec.Containers[0].Resources)
					return
				}
				l.created.Add(1)
			}
		})
	}
	return l
}

// end stops the load, which must have created more than n pods.
func (l *load) end(t *testing.T, n int64) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	if l.created.Load() <= n {
		t.Errorf("only %d pods", l.created.Load())
	}
}

// secret returns the Secret that holds the certificates.
func (c *cluster) secret() *corev1.Secret {
	c.t.Helper()
	s, err := c.client.CoreV1().Secrets(namespace).Get(context.Background(), name, metav1.GetOptions{})
	c.must(err)
	return s
}

// TestRealAPICertificatesRotatedUnderLoad proves that no pod notices when authority
// and certificate change repeatedly. A new replica that wants lifetimes ten times
// as long makes them due, so nothing expires however slow the machine is.
func TestRealAPICertificatesRotatedUnderLoad(t *testing.T) {
	c := newCluster(t)
	c.install("")
	lifetimes := func(hours int) []string {
		return []string{fmt.Sprintf("--ca-lifetime=%dh", 3*hours), fmt.Sprintf("--cert-lifetime=%dh", hours), "--settle=6s", "--check-interval=200ms"}
	}
	c.run(lifetimes(1)...)
	_, err := c.define("vf", vfs, `{"type":"host-device"}`)
	c.must(err)
	l := c.startLoad()
	l.wg.Go(func() { c.shakeHands(l) })
	for _, hours := range []int{10, 100} {
		before := c.secret().Data
		c.run(lifetimes(hours)...)
		eventually(t, "every replica to serve with a new certificate of a new authority", func() bool {
			data := c.secret().Data
			if t.Failed() {
				return true
			}
			return !bytes.HasPrefix(data["ca.crt"], before["ca.crt"]) && bytes.HasSuffix(data["ca.crt"], before["ca.crt"]) &&
				!bytes.Equal(data["tls.crt"], before["tls.crt"]) && c.allServe(data["tls.crt"])
		})
		reached := l.created.Load()
		eventually(t, "pods after that", func() bool { return l.created.Load() > reached+20 || t.Failed() })
	}
	l.end(t, 40)
}

// shakeHands connects to every replica repeatedly, as an API server does that
// learns of the webhook's configuration a second late. Connections that are kept
// open, such as those of the load, would prove nothing.
func (c *cluster) shakeHands(l *load) {
	var bundles [][]byte
	for !l.stop.Load() && !c.t.Failed() {
		configuration, err := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(context.Background(), release, metav1.GetOptions{})
		if err != nil {
			c.t.Error(err)
			return
		}
		bundles = append(bundles, configuration.Webhooks[0].ClientConfig.CABundle)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(bundles[max(0, len(bundles)-20)])
		for _, r := range c.balancer.all() {
			if _, err := r.presents(&tls.Config{RootCAs: pool, ServerName: name + "." + namespace + ".svc"}); err != nil {
				c.t.Errorf("%s: %v", r.log, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// presents connects to a replica and returns the certificate that it presents.
func (r *replica) presents(config *tls.Config) ([]byte, error) {
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port), config)
	if err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0].Raw, conn.Close()
}

// allServe reports whether every replica serves with the certificate.
func (c *cluster) allServe(certificate []byte) bool {
	block, _ := pem.Decode(certificate)
	for _, r := range c.balancer.all() {
		presented, err := r.presents(&tls.Config{InsecureSkipVerify: true}) // only the presented certificate matters
		if err != nil || block == nil || !bytes.Equal(presented, block.Bytes) {
			return false
		}
	}
	return true
}

// TestRealAPICertificatesOfSomebodyElse proves that a replica serves with
// certificate files, and with the new ones after a renewal, as in a mounted Secret
// that the kubelet updates. The webhook's own certificates stand in for those of
// cert-manager.
func TestRealAPICertificatesOfSomebodyElse(t *testing.T) {
	c := newCluster(t)
	c.install("")
	dir := c.path("certificates")
	c.must(os.Mkdir(dir, 0o700))
	mount := func() (certificate []byte) {
		data := c.secret().Data
		for _, file := range []string{"tls.crt", "tls.key"} {
			c.must(os.WriteFile(filepath.Join(dir, "new"), data[file], 0o600))
			c.must(os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, file)))
		}
		return data["tls.crt"]
	}
	c.run().stop()
	first := mount()
	issuer := c.run("--ca-lifetime=87600h", "--cert-lifetime=2160h", "--settle=1s") // an authority that lives longer
	eventually(t, "a renewal", func() bool { return !bytes.Equal(c.secret().Data["tls.crt"], first) })
	issuer.stop()
	c.balancer.forget()
	c.run("--cert-dir=" + dir)
	_, err := c.define("vf", vfs, `{"type":"host-device"}`)
	c.must(err)
	if !c.allServe(first) {
		t.Error("it does not serve with the files")
	}
	second := mount()
	eventually(t, "the renewed files", func() bool { return c.allServe(second) })
	if _, err := c.create(newPod("app", "vf"), metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

// chart renders the chart's objects; values follow.
const chart = "helm template manifold deploy/helm/manifold -n kube-system --set "

// TestRealAPIKindsOfOthers proves that the API server accepts our objects of other
// projects' kinds, with their own CRDs and without unknown fields.
func TestRealAPIKindsOfOthers(t *testing.T) {
	c := newCluster(t)
	for _, crds := range []struct{ module, files string }{
		{harness.CertManager, "deploy/crds/cert-manager.io_*.yaml"},
		{harness.PrometheusOperator, "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"},
		{harness.PrometheusOperator, "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"},
	} {
		dir, err := harness.ModuleDir(crds.module)
		c.must(err)
		files, err := filepath.Glob(filepath.Join(dir, crds.files))
		c.must(err)
		if len(files) == 0 {
			t.Fatalf("%s has no %s", crds.module, crds.files)
		}
		for _, f := range files {
			c.shell("kubectl create -f " + f)
		}
	}
	c.shell("kubectl wait --for=condition=Established --timeout=3m crd --all")
	const all = chart + "webhook.enabled=true,webhook.certificates=cert-manager,prometheusRule.enabled=true,podMonitor.enabled=true,http.public=true,dashboard.enabled=true "
	for set, want := range map[string][]string{
		"": {"issuer.cert-manager.io/manifold-webhook created", "issuer.cert-manager.io/manifold-webhook-selfsigned created",
			"certificate.cert-manager.io/manifold-webhook-ca created", "certificate.cert-manager.io/manifold-webhook created", "prometheusrule.monitoring.coreos.com/manifold created",
			"podmonitor.monitoring.coreos.com/manifold created", "podmonitor.monitoring.coreos.com/manifold-webhook created", "configmap/manifold-dashboard created"},
		"-with-own": {"certificate.cert-manager.io/manifold-webhook created", "prometheusrule.monitoring.coreos.com/manifold created"},
	} {
		args := ""
		if set != "" {
			args = "--set webhook.certManager.issuer.name=ours,webhook.certManager.issuer.kind=ClusterIssuer,webhook.certManager.issuer.group=cert-manager.io,prometheusRule.labels.release=prometheus "
		}
		out := c.shell(all + args + "| kubectl create --validate=strict --dry-run=server -f -")
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("no %q in:\n%s", line, out)
			}
		}
	}
	if out := c.shell("if " + all + "| sed 's/issuerRef/issuerReference/' | kubectl create --validate=strict --dry-run=server -f - 2>&1; then exit 1; fi"); !strings.Contains(out, "issuerRef") {
		t.Errorf("an unknown field is accepted: %s", out)
	}
}

// TestRealAPILogFormat proves that a replica's whole log, including that of
// libraries, has the format that the chart's value names.
func TestRealAPILogFormat(t *testing.T) {
	c := newCluster(t)
	c.install("--set logFormat=text")
	text, def := c.run(), c.run("--log-format=json")
	for _, r := range []*replica{text, def} {
		r.stop()
		raw, err := os.ReadFile(r.log)
		c.must(err)
		if !bytes.Contains(raw, []byte("serving")) {
			t.Errorf("the log is empty:\n%s", raw)
		}
		for line := range bytes.Lines(raw) {
			if isJSON := json.Valid(line); isJSON != (r == def) || !isJSON && !bytes.HasPrefix(line, []byte("time=")) {
				t.Errorf("JSON: %v, want %v: %s", isJSON, r == def, line)
			}
		}
	}
}

// TestRealAPIUpgrade replaces the replicas one by one, starting the new before it
// stops the old, as the Deployment does.
func TestRealAPIUpgrade(t *testing.T) {
	c := newCluster(t)
	c.install("")
	replicas := []*replica{c.run(), c.run()}
	_, err := c.define("vf", vfs, `{"type":"host-device"}`)
	c.must(err)
	before := string(c.secret().Data["tls.crt"])
	l := c.startLoad()
	for _, old := range replicas {
		c.run()
		old.stop()
	}
	eventually(t, "pods after the upgrade", func() bool { return l.created.Load() > 100 || t.Failed() })
	l.end(t, 100)
	if after := string(c.secret().Data["tls.crt"]); after != before {
		t.Error("a new replica created a certificate of its own")
	}
}

// TestRealAPIKustomizeBase installs and uninstalls without Helm, by the commands of
// docs/install.md and docs/uninstall.md: the API server accepts the whole base, and
// the CRD stays.
func TestRealAPIKustomizeBase(t *testing.T) {
	install, err1 := harness.Commands("install.md")
	uninstall, err2 := harness.Commands("uninstall.md")
	if err := errors.Join(err1, err2); err != nil || len(install) != 3 || !strings.Contains(install[1], "--kustomize") || len(uninstall) != 3 {
		t.Fatalf("%q, %q, %v", install, uninstall, err)
	}
	c := newCluster(t)
	if out := c.shell(install[1]); !strings.Contains(out, "daemonset.apps/manifold created") {
		t.Errorf("the installation printed\n%s", out)
	}
	for _, again := range []string{
		"kubectl apply -k deploy/kustomize/base",
		chart + "webhook.enabled=true,startupTaint=manifold.dev/not-ready,http.public=true,dashboard.enabled=true | kubectl apply -f -",
	} {
		c.shell(again)
		for line := range strings.Lines(c.shell(again)) { // kubectl rewrites the selector of a disruption budget each time, unchanged
			if !strings.HasSuffix(line, " unchanged\n") && !strings.HasPrefix(line, "poddisruptionbudget") {
				t.Errorf("%s, the second time: %s", again, line)
			}
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go c.withdraw(ctx)
	out := c.shell(uninstall[2])
	for _, gone := range []string{`daemonset.apps "manifold" deleted`, `clusterrole.rbac.authorization.k8s.io "manifold" deleted`, `daemonset.apps "manifold-uninstall" deleted`} {
		if !strings.Contains(out, gone) {
			t.Errorf("no %s in:\n%s", gone, out)
		}
	}
	c.shell("kubectl get customresourcedefinition network-attachment-definitions.k8s.cni.cncf.io")
}

// withdraw plays the controller of the DaemonSet that withdraws the CNI
// configuration: it reports, until ctx ends, that the single node is done. The test
// has neither controller nor node.
func (c *cluster) withdraw(ctx context.Context) {
	sets := c.client.AppsV1().DaemonSets("kube-system")
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		ds, err := sets.Get(ctx, "manifold-uninstall", metav1.GetOptions{})
		if err != nil || ds.Status.ObservedGeneration == ds.Generation {
			continue // it does not exist yet, or not any more
		}
		s := &ds.Status
		s.ObservedGeneration, s.DesiredNumberScheduled, s.CurrentNumberScheduled = ds.Generation, 1, 1
		s.UpdatedNumberScheduled, s.NumberReady, s.NumberAvailable = 1, 1, 1
		_, _ = sets.UpdateStatus(ctx, ds, metav1.UpdateOptions{}) // on an error, the next round retries
	}
}

// TestRealAPIAdmissionPage runs the commands of docs/admission.md in order.
func TestRealAPIAdmissionPage(t *testing.T) {
	blocks, err := harness.Commands("admission.md")
	if err != nil || len(blocks) != 5 {
		t.Fatalf("%d blocks of commands, %v", len(blocks), err)
	}
	c := newCluster(t)
	c.shell(blocks[0]) // installs
	c.serve()
	c.run()
	if out := c.shell(blocks[1]); !strings.Contains(out, `"vendor.example/vfs":"1"`) {
		t.Errorf("what was injected: %s", out)
	}
	if out := c.shell("{\n" + blocks[2] + "} || true"); !strings.Contains(out, "spec.config: plugin 1: type") {
		t.Errorf("a refusal: %s", out)
	}
	for _, block := range blocks[3:] {
		c.shell(block)
	}
}
