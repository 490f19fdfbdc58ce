package manifests_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/test/manifests"
)

// root is the root of the source tree, relative to this package.
const root = "../.."

// render returns the chart's objects by kind and name.
func render(t *testing.T, args ...string) map[string]*unstructured.Unstructured {
	t.Helper()
	stream, err := manifests.Render(root, args...)
	if err != nil {
		t.Fatal(err)
	}
	return byName(t, stream)
}

func byName(t *testing.T, stream []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	objects, err := manifests.Objects(stream)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*unstructured.Unstructured{}
	for _, o := range objects {
		key := o.GetKind() + "/" + o.GetName()
		if out[key] != nil {
			t.Errorf("%s twice", key)
		}
		out[key] = o
	}
	return out
}

// as converts an object to its type and fails on a field that the type does not
// have.
func as[T any](t *testing.T, objects map[string]*unstructured.Unstructured, key string) *T {
	t.Helper()
	o := objects[key]
	if o == nil {
		t.Fatalf("no %s", key)
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, out, true); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return out
}

// values returns Helm arguments by name: the presets, and other values that change
// the result.
func values() map[string][]string {
	out := map[string][]string{
		"defaults":     nil,
		"Pods API":     {"--kube-version", "1.37.0"},
		"no Pods API":  {"--set", "podsAPI=false"},
		"repair":       {"--set", "reconcile=repair", "--set", "reconcileExclude={0000:01:00.0}"},
		"pod network":  {"--set", "reconcile=off", "--set", "podsAPI=true"},
		"any kubelet":  {"--set", "reconcile=off", "--kube-version", "1.37.0"},
		"claims":       {"--set", "dra=true"},
		"taint":        {"--set", "startupTaint=manifold.dev/not-ready"},
		"admission":    {"--set", "webhook.enabled=true"},
		"cert-manager": {"--set", "webhook.enabled=true,webhook.certificates=cert-manager"},
		"observed":     {"--set", "logFormat=text,traces=http://collector:4318,prometheusRule.enabled=true,podMonitor.enabled=true,http.public=true,dashboard.enabled=true,webhook.enabled=true"},
		"networks":     {"--set", "host.networkDirs={/etc/cni/multus/net.d}"},
		"own registry": {"--set", "image.repository=registry.example/manifold", "--set", "image.pullSecrets={one,two}"},
	}
	for _, p := range manifests.Presets {
		out[p] = []string{"-f", manifests.Preset(p)}
	}
	return out
}

func TestChartIsInOrder(t *testing.T) {
	for name, args := range values() {
		t.Run(name, func(t *testing.T) {
			if out, err := manifests.Helm(root, append([]string{"lint", "--strict", manifests.Chart}, args...)...); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			objects := render(t, args...)
			as[corev1.ServiceAccount](t, objects, "ServiceAccount/manifold")
			as[corev1.ConfigMap](t, objects, "ConfigMap/manifold")
			unprivileged(t, as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold"), name == "repair")
			unprivileged(t, as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold-uninstall"), false)
		})
	}
}

// unprivileged checks the privileges of a DaemonSet's pods.
func unprivileged(t *testing.T, ds *appsv1.DaemonSet, repairs bool) {
	t.Helper()
	pod := ds.Spec.Template.Spec
	if pod.HostPID || pod.HostIPC || pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the pod: %+v", pod.SecurityContext)
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0].Operator != corev1.TolerationOpExists || pod.Tolerations[0].Key != "" {
		t.Errorf("it does not tolerate all taints: %+v", pod.Tolerations)
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		var want []corev1.Capability
		if repairs && c.Name == "agent" {
			want = []corev1.Capability{"NET_ADMIN"}
		}
		restricted(t, c, want)
	}
	for _, v := range pod.Volumes {
		wide := []string{"/", "/var/lib/kubelet", "/etc", "/var", "/run", "/proc", "/sys", "/dev"}
		if v.HostPath != nil && slices.Contains(wide, v.HostPath.Path) {
			t.Errorf("%s of the host is mounted", v.HostPath.Path)
		}
	}
}

// restricted checks that a container has these capabilities and no other privilege.
func restricted(t *testing.T, c corev1.Container, capabilities []corev1.Capability) {
	t.Helper()
	want := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
	}
	if !reflect.DeepEqual(c.SecurityContext, want) {
		t.Errorf("container %s: %+v", c.Name, c.SecurityContext)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("container %s requests nothing", c.Name)
	}
}

func TestPermissionsAreTheLeast(t *testing.T) {
	const reviews = "; authentication.k8s.io/tokenreviews: create; authorization.k8s.io/subjectaccessreviews: create" // decides who may read the node view
	for name, want := range map[string]string{
		"no Pods API": "k8s.cni.cncf.io/network-attachment-definitions: get list watch; /pods: get list watch patch; /events: create patch" + reviews,
		"Pods API":    "k8s.cni.cncf.io/network-attachment-definitions: get list watch; /pods: get patch; /events: create patch" + reviews,
		"claims": "k8s.cni.cncf.io/network-attachment-definitions: get list watch; /pods: get list watch patch; /events: create patch; " +
			"resource.k8s.io/resourceslices: get list watch" + reviews,
		"taint": "k8s.cni.cncf.io/network-attachment-definitions: get list watch; /pods: get list watch patch; /events: create patch; /nodes: get patch" + reviews,
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--kube-version", "1.36.0"}, values()[name]...)
			var got []string
			for _, r := range as[rbacv1.ClusterRole](t, render(t, args...), "ClusterRole/manifold").Rules {
				got = append(got, fmt.Sprintf("%s/%s: %s", strings.Join(r.APIGroups, ","), strings.Join(r.Resources, ","), strings.Join(r.Verbs, " ")))
			}
			if text := strings.Join(got, "; "); text != want {
				t.Errorf("%s\nwant %s", text, want)
			}
		})
	}
}

// Renewing a cert-manager certificate makes no call fail: the webhook gets the new
// certificate later than the API server gets the authority, so both the old and the
// new certificate must verify against it.
func TestCertManagersAuthorityStays(t *testing.T) {
	objects := render(t, values()["cert-manager"]...)
	spec := func(key string, path ...string) any {
		t.Helper()
		o := objects[key]
		if o == nil {
			t.Fatalf("no %s", key)
		}
		v, _, err := unstructured.NestedFieldNoCopy(o.Object, append([]string{"spec"}, path...)...)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	issuer := fmt.Sprint("Issuer/", spec("Certificate/manifold-webhook", "issuerRef", "name"))
	authority := spec(issuer, "ca", "secretName")
	if authority == nil {
		t.Fatalf("%s is not an authority: %v", issuer, spec(issuer))
	}
	key := fmt.Sprint("Certificate/", authority)
	if spec(key, "secretName") != authority || spec(key, "isCA") != true || spec(key, "privateKey", "rotationPolicy") != "Never" {
		t.Errorf("the authority changes: %v", spec(key))
	}
	if issuer := fmt.Sprint("Issuer/", spec(key, "issuerRef", "name")); spec(issuer, "selfSigned") == nil {
		t.Errorf("no issuer creates the authority: %v", spec(issuer))
	}
	given := render(t, append(values()["cert-manager"], "--set", "webhook.certManager.issuer.name=ours")...)
	for key := range given {
		if strings.HasPrefix(key, "Issuer/") || key == "Certificate/manifold-webhook-ca" {
			t.Errorf("%s in addition to the given issuer", key)
		}
	}
	// An issuer that nobody would ask is a mistake.
	if _, err := manifests.Render(root, "--set", "webhook.enabled=true,webhook.certManager.issuer.name=ours"); err == nil || !strings.Contains(err.Error(), "set webhook.certificates=cert-manager") {
		t.Errorf("an issuer without cert-manager: %v", err)
	}
}

// Metrics name pods and devices: they are only readable on the host unless the
// values say otherwise, and the kubelet's probes reach the agent either way.
func TestHTTPIsTheHostsOwn(t *testing.T) {
	for name, tc := range map[string]struct {
		args         []string
		listen, host string
		probes       bool
	}{
		"host's network": {nil, "127.0.0.1:9610", "127.0.0.1", true},
		"public":         {[]string{"--set", "http.public=true"}, ":9610", "", true},
		"pod network":    {values()["pod network"], ":9610", "", true},
		"none":           {[]string{"--set", "http.port=0"}, "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, tc.args...)
			var conf struct{ Listen string }
			if err := json.Unmarshal([]byte(as[corev1.ConfigMap](t, objects, "ConfigMap/manifold").Data["agent.json"]), &conf); err != nil {
				t.Fatal(err)
			}
			agent := as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold").Spec.Template.Spec.Containers[0]
			if conf.Listen != tc.listen || (agent.LivenessProbe != nil) != tc.probes || (agent.ReadinessProbe != nil) != tc.probes {
				t.Errorf("listen %q, probes %v %v", conf.Listen, agent.LivenessProbe, agent.ReadinessProbe)
			}
			if tc.probes && (agent.LivenessProbe.HTTPGet.Host != tc.host || agent.LivenessProbe.HTTPGet.Path == agent.ReadinessProbe.HTTPGet.Path) {
				t.Errorf("%+v, %+v", agent.LivenessProbe.HTTPGet, agent.ReadinessProbe.HTTPGet)
			}
		})
	}
}

// The agent's own pod must be able to start where the plugin cannot look up a pod
// without an agent. The API server's version does not tell whether it can.
func TestHostNetworkOnlyWhereItIsNeeded(t *testing.T) {
	for name, want := range map[string]bool{"defaults": true, "no Pods API": true, "any kubelet": true, "pod network": false} {
		if got := as[appsv1.DaemonSet](t, render(t, values()[name]...), "DaemonSet/manifold").Spec.Template.Spec.HostNetwork; got != want {
			t.Errorf("%s: hostNetwork %v", name, got)
		}
	}
}

// Helm creates the objects of the uninstallation before it deletes the release, in
// this order, and removes them after success.
func TestUninstallationIsAHook(t *testing.T) {
	objects := render(t)
	for key, weight := range map[string]string{
		"ServiceAccount/manifold-uninstall": "-2", "Role/manifold-uninstall": "-2", "RoleBinding/manifold-uninstall": "-2",
		"DaemonSet/manifold-uninstall": "-1", "Job/manifold-uninstall": "0",
	} {
		a := objects[key].GetAnnotations()
		if a["helm.sh/hook"] != "pre-delete" || a["helm.sh/hook-weight"] != weight || !strings.Contains(a["helm.sh/hook-delete-policy"], "hook-succeeded") {
			t.Errorf("%s: %v", key, a)
		}
	}
	for key := range render(t, "--set", "uninstall.nodes=false") {
		if strings.HasSuffix(key, "-uninstall") {
			t.Errorf("%s exists", key)
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	for _, bad := range []string{
		"reconcile=perhaps", "host.cniBinDir=opt/cni/bin", "host.cniConfName=00-manifold.json", "image.digest=latest",
		"podsAPI=yes", "maxUnavailable=0", "nosuchvalue=1", "host.cniBinDri=/opt", "apiServer.port=https", "http.port=70000",
		"logFormat=xml", "traces=collector:4318", "traces=https://collector:4318", "podMonitor.interval=often", "dashboard.label=x",
		"host.cniBinDir=/opt/{x", "host.cniConfDir=/", "host.stateDir=/var", "host.kubeletDir=/var/../etc", "host.deviceInfoDir=/var/run/",
		"image.tag=-x", "image.repository=registry.example/manifold:1", "http.port=9611", "startupTaint=a/b/c",
		`podLabels.app\.kubernetes\.io/name=x`, `podAnnotations.manifold\.dev/config-sha256=x`,
		"host.networkDirs={nets}", "host.networkDirs={/}", "host.networkDirs={/etc}", "host.networkDirs={/srv/a,/srv/a}", "host.networkDirs=/srv/a",
	} {
		if out, err := manifests.Render(root, "--set", bad); err == nil {
			t.Errorf("--set %s is accepted:\n%.200s", bad, out)
		} else if !strings.Contains(err.Error(), "values") {
			t.Errorf("--set %s: %v", bad, err)
		}
	}
}

// Values keep their meaning, whatever they look like to YAML. Nothing is rendered
// twice: the API server would reject it or, worse, use the last one.
func TestValuesMeanWhatTheySay(t *testing.T) {
	objects := render(t, "--set-json", `clusterNetwork="a: b #c"`, "--set-json", `nodeSelector={"kubernetes.io/os":"linux","zone":"x"}`,
		"--set", "host.networkDirs={/etc/cni/net.d,/etc/cni/multus/net.d}")
	pod := as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold").Spec.Template.Spec
	if install := pod.InitContainers[0]; !slices.Contains(install.Args, "--cluster-network=a: b #c") {
		t.Errorf("%q", install.Args)
	}
	if len(pod.NodeSelector) != 2 || pod.NodeSelector["zone"] != "x" {
		t.Errorf("%v", pod.NodeSelector)
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		seen := map[string]bool{}
		for _, m := range c.VolumeMounts {
			if seen[m.MountPath] {
				t.Errorf("container %s has %s twice", c.Name, m.MountPath)
			}
			seen[m.MountPath] = true
		}
		if !seen["/etc/cni/multus/net.d"] {
			t.Errorf("container %s does not see the additional directory", c.Name)
		}
	}
	stream, err := manifests.Render(root, "--set-json", `nodeSelector={"kubernetes.io/os":"linux"}`, "--set-json", `webhook={"enabled":true,"nodeSelector":{"kubernetes.io/os":"linux"}}`)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(stream), "nodeSelector:") != strings.Count(string(stream), "kubernetes.io/os: linux") {
		t.Error("a nodeSelector has a duplicate key")
	}
}

func TestKustomizeBasesAreTheCharts(t *testing.T) {
	files, err := manifests.Kustomizations(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, manifests.Bases, name))
		if err != nil || string(got) != want {
			t.Errorf("%s does not match the chart: %v; run: make deploy", name, err)
		}
	}
	for base, resources := range map[string]string{
		"base": files["base/manifold.yaml"] + "\n---\n" + files["base/crd.yaml"], "uninstall": files["uninstall/manifold.yaml"],
	} {
		built, err := manifests.Kustomize(root, "build", filepath.Join(manifests.Bases, base))
		if err != nil {
			t.Fatal(err)
		}
		if got := byName(t, built); !reflect.DeepEqual(got, byName(t, []byte(resources))) {
			t.Errorf("kustomize builds other objects of %s:\n%s", base, built)
		}
	}
	// The base has no Helm hook, since only Helm deletes objects with its annotation.
	// It runs under the installed service account.
	withdraws := byName(t, []byte(files["uninstall/manifold.yaml"]))
	ds := as[appsv1.DaemonSet](t, withdraws, "DaemonSet/manifold-uninstall")
	unprivileged(t, ds, false)
	if len(withdraws) != 1 || len(ds.Annotations) != 0 || ds.Spec.Template.Spec.ServiceAccountName != "manifold" {
		t.Errorf("%v", withdraws)
	}
}

// The agent gets the logging and tracing values, and Prometheus's operator gets the
// rules that are tested.
func TestWhatIsSeenFromOutsideIsAValue(t *testing.T) {
	config := func(args ...string) string {
		return as[corev1.ConfigMap](t, render(t, args...), "ConfigMap/manifold").Data["agent.json"]
	}
	if text := config(); strings.Contains(text, "logFormat") || strings.Contains(text, "traces") {
		t.Errorf("by default: %s", text)
	}
	observed := values()["observed"]
	if text := config(observed...); !strings.Contains(text, `"logFormat": "text"`) || !strings.Contains(text, `"traces": "http://collector:4318"`) {
		t.Errorf("asked for: %s", text)
	}
	rule := render(t, append(observed, "--set", "prometheusRule.labels.release=prometheus")...)["PrometheusRule/manifold"]
	if rule == nil || rule.GetLabels()["release"] != "prometheus" {
		t.Fatalf("the rules: %+v", rule)
	}
	raw, err := os.ReadFile(filepath.Join(root, "deploy/monitoring/alerts.yaml"))
	want := map[string]any{}
	if err == nil {
		err = yaml.Unmarshal(raw, &want)
	}
	if err != nil || !reflect.DeepEqual(rule.Object["spec"], any(want)) {
		t.Errorf("%v: the rules differ from those of deploy/monitoring: %v", err, rule.Object["spec"])
	}
	for _, unasked := range []string{"PrometheusRule/manifold", "PodMonitor/manifold", "ConfigMap/manifold-dashboard"} {
		if render(t)[unasked] != nil {
			t.Errorf("%s exists by default", unasked)
		}
	}
	if args := as[appsv1.Deployment](t, render(t, observed...), "Deployment/manifold-webhook").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--log-format=text") {
		t.Errorf("admission: %v", args)
	}
}

// Each PodMonitor selects the pods of its program, at a port that they have.
func TestMonitorsReachThePods(t *testing.T) {
	objects := render(t, append(values()["observed"], "--set", "podMonitor.labels.release=prometheus,podMonitor.interval=15s")...)
	for name, pod := range map[string]corev1.PodTemplateSpec{
		"manifold":         as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold").Spec.Template,
		"manifold-webhook": as[appsv1.Deployment](t, objects, "Deployment/manifold-webhook").Spec.Template,
	} {
		o := objects["PodMonitor/"+name]
		if o == nil || o.GetLabels()["release"] != "prometheus" {
			t.Fatalf("%s: %+v", name, o)
		}
		var spec struct {
			Selector            metav1.LabelSelector `json:"selector"`
			PodMetricsEndpoints []struct {
				Port, Interval string
			} `json:"podMetricsEndpoints"`
		}
		raw, err := json.Marshal(o.Object["spec"])
		if err == nil {
			err = json.Unmarshal(raw, &spec)
		}
		if err != nil || len(spec.PodMetricsEndpoints) != 1 || spec.PodMetricsEndpoints[0].Interval != "15s" {
			t.Fatalf("%s: %v: %s", name, err, raw)
		}
		if s, err := metav1.LabelSelectorAsSelector(&spec.Selector); err != nil || s.Empty() || !s.Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s: %v does not select pods with %v: %v", name, s, pod.Labels, err)
		}
		if !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == spec.PodMetricsEndpoints[0].Port }) {
			t.Errorf("%s: the container has no port %s", name, spec.PodMetricsEndpoints[0].Port)
		}
	}
	for _, unreached := range []string{"http.public=false", "http.port=0"} {
		if _, err := manifests.Render(root, append(values()["observed"], "--set", unreached)...); err == nil || !strings.Contains(err.Error(), "podMonitor.enabled") {
			t.Errorf("%s: %v", unreached, err)
		}
	}
}

// Grafana's sidecar finds the tested dashboard by its label.
func TestDashboardIsAConfigMap(t *testing.T) {
	args := append(values()["observed"], "--set", "dashboard.annotations.grafana_folder=Networking")
	m := as[corev1.ConfigMap](t, render(t, args...), "ConfigMap/manifold-dashboard")
	raw, err := os.ReadFile(filepath.Join(root, "deploy/monitoring/dashboard.json"))
	if err != nil || strings.TrimSpace(m.Data["manifold.json"]) != strings.TrimSpace(string(raw)) {
		t.Errorf("%v: the dashboard differs from that of deploy/monitoring", err)
	}
	if m.Labels["grafana_dashboard"] != "1" || m.Annotations["grafana_folder"] != "Networking" {
		t.Errorf("labels %v, annotations %v", m.Labels, m.Annotations)
	}
}

// TestAdmissionIsInOrder proves that the admission objects fit together, and that
// the webhook runs twice, unprivileged, and with the least permissions.
func TestAdmissionIsInOrder(t *testing.T) {
	const name = "manifold-webhook"
	objects := render(t, "--set", "webhook.enabled=true")
	deployment := as[appsv1.Deployment](t, objects, "Deployment/"+name)
	pod := deployment.Spec.Template
	for _, selector := range []map[string]string{
		deployment.Spec.Selector.MatchLabels, as[corev1.Service](t, objects, "Service/"+name).Spec.Selector,
		as[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget/"+name).Spec.Selector.MatchLabels,
		pod.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm.LabelSelector.MatchLabels,
	} {
		if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)) {
			t.Errorf("selector %v does not select pods with %v", selector, pod.Labels)
		}
	}
	if agent := as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold"); labels.SelectorFromSet(agent.Spec.Selector.MatchLabels).Matches(labels.Set(pod.Labels)) {
		t.Error("the agent's selector selects admission's pods")
	}
	if *deployment.Spec.Replicas != 2 || !*pod.Spec.SecurityContext.RunAsNonRoot || *pod.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation {
		t.Errorf("%d replicas, %+v", *deployment.Spec.Replicas, pod.Spec.SecurityContext)
	}
	for _, rule := range slices.Concat(as[rbacv1.ClusterRole](t, objects, "ClusterRole/"+name).Rules, as[rbacv1.Role](t, objects, "Role/"+name).Rules) {
		if writes := slices.ContainsFunc(rule.Verbs, func(v string) bool { return !slices.Contains([]string{"get", "list", "watch"}, v) }); writes && len(rule.ResourceNames) != 1 {
			t.Errorf("it may %v any of %v", rule.Verbs, rule.Resources)
		}
	}
}

// TestAdmissionIsAskedOfFewPods proves that both webhooks review the same pods, and
// that none of their objects exists by default.
func TestAdmissionIsAskedOfFewPods(t *testing.T) {
	objects := render(t, "--set", "webhook.enabled=true")
	mutating := as[admissionv1.MutatingWebhookConfiguration](t, objects, "MutatingWebhookConfiguration/manifold").Webhooks
	validating := as[admissionv1.ValidatingWebhookConfiguration](t, objects, "ValidatingWebhookConfiguration/manifold").Webhooks
	if len(mutating) != 1 || len(validating) != 2 || *mutating[0].FailurePolicy != admissionv1.Fail || len(mutating[0].MatchConditions) != 2 {
		t.Fatalf("mutating %+v, validating %+v", mutating, validating)
	}
	if !reflect.DeepEqual(mutating[0].MatchConditions, validating[0].MatchConditions) || !reflect.DeepEqual(mutating[0].Rules, validating[0].Rules) {
		t.Errorf("mutating %+v, validating %+v", mutating[0], validating[0])
	}
	for key := range render(t) {
		if strings.Contains(key, "ebhook") {
			t.Errorf("%s exists by default", key)
		}
	}
}
