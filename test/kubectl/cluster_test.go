//go:build apiserver

package kubectl

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/manifests"
)

// kubectlDir is the directory of kubectl.
var kubectlDir string

func init() {
	builds = append(builds, func() error {
		_, err := apiserver.Build()
		return err
	}, func() (err error) {
		kubectlDir, err = harness.Controllers()
		return err
	})
	commands["bind"], commands["page"], commands["block"], commands["pass"], commands["picture"] = cmdBind, cmdPage, cmdBlock, cmdPass, cmdPicture
	commands["cluster"], commands["user"], commands["ask"], commands["admission"] = cmdCluster, cmdUser, cmdAsk, cmdAdmission
}

// TestRealAPIScripts runs the scripts that need a real API server, because only it
// can tell what its proxy forwards and who may see what.
func TestRealAPIScripts(t *testing.T) { runScripts(t, filepath.Join("testdata", "apiserver")) }

// TestRealAPIPages runs the commands of the documentation pages with a real API
// server. Between two blocks of commands the scripts do the kubelet's work.
func TestRealAPIPages(t *testing.T) {
	runScripts(t, filepath.Join("testdata", "pages"))
	for _, p := range pages {
		if err := p.finish(); err != nil {
			t.Error(err)
		}
	}
}

// The address of the agent's pod: the API server's proxy rejects loopback
// addresses.
const (
	agentAddress = "10.99.0.1"
	agentPort    = 9611
	namespace    = "kube-system"
)

// cluster is an API server with the chart's service accounts and roles.
type cluster struct {
	server *apiserver.Server
	client kubernetes.Interface
}

// clusters are the clusters of the scripts' nodes.
var clusters = map[*node]*cluster{}

// check fails the script on any error but that an object exists already.
func check(ts *testscript.TestScript, err error) {
	if err != nil && !apierrors.IsAlreadyExists(err) {
		ts.Fatalf("%v", err)
	}
}

// cmdCluster starts the API server of the script's node, installs the chart's
// service accounts and RBAC objects, and creates the agent's pod and the pods in
// pods/.
func cmdCluster(ts *testscript.TestScript, _ bool, _ []string) {
	n := of(ts)
	lo, err := netlinksafe.LinkByName("lo")
	ts.Check(err)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(agentAddress), Mask: net.CIDRMask(32, 32)}}
	ts.Check(netlink.AddrReplace(lo, address))
	dir := n.path("apiserver")
	ts.Check(os.MkdirAll(dir, 0o700))
	c := &cluster{}
	c.server, err = apiserver.Start(dir)
	ts.Check(err)
	ts.Defer(func() { _ = c.server.Stop() }) // an error here has been reported before
	c.client, err = c.server.Client()
	ts.Check(err)
	clusters[n], n.uids = c, map[string]string{}
	ts.Setenv("PATH", strings.Join([]string{kubectlDir, n.path("bin"), ts.Getenv("PATH")}, string(os.PathListSeparator)))
	completer, err := filepath.Abs(filepath.Join("..", "..", "cmd", "kubectl-manifold", "kubectl_complete-manifold"))
	ts.Check(err)
	ts.Setenv("COMPLETER", completer)
	c.kubeconfigOf(ts, n.path("admin.kubeconfig"), c.server.Config().BearerToken)
	ts.Setenv("KUBECONFIG", n.path("admin.kubeconfig"))
	_, err = c.client.CoreV1().Namespaces().Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	check(ts, err)
	ts.Check(c.server.InstallDefinitions())
	c.install(ts, func(o *unstructured.Unstructured) bool {
		return o.GroupVersionKind().Group == rbacv1.GroupName || o.GetKind() == "ServiceAccount"
	})
	c.kubeconfig(ts, n.path("agent.kubeconfig"), namespace, "manifold")
	labels, err := metav1.ParseToLabelSelector(kube.AgentSelector)
	ts.Check(err)
	c.pod(ts, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "manifold-x", Labels: labels.MatchLabels},
		Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: "manifold", Containers: []corev1.Container{
			{Name: "agent", Image: "none", Ports: []corev1.ContainerPort{{Name: kube.AgentPort, ContainerPort: agentPort}}},
		}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: agentAddress, PodIPs: []corev1.PodIP{{IP: agentAddress}}},
	})
	files, err := filepath.Glob(n.path("pods/*.yaml"))
	ts.Check(err)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		ts.Check(err)
		pod := &corev1.Pod{}
		ts.Check(yaml.Unmarshal(raw, pod))
		pod.Spec.NodeName = "node1"
		n.uids[pod.Name] = c.pod(ts, pod)
	}
}

// install creates those objects of the chart that wanted selects.
func (c *cluster) install(ts *testscript.TestScript, wanted func(*unstructured.Unstructured) bool, args ...string) {
	stream, err := manifests.Render(filepath.Join("..", ".."), args...)
	ts.Check(err)
	objects, err := manifests.Objects(stream)
	ts.Check(err)
	client, err := dynamic.NewForConfig(c.server.Config())
	ts.Check(err)
	for _, o := range objects {
		if !wanted(o) {
			continue
		}
		gvk := o.GroupVersionKind()
		resource := client.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: strings.ToLower(gvk.Kind) + "s"})
		if o.GetNamespace() == "" {
			_, err = resource.Create(context.Background(), o, metav1.CreateOptions{})
		} else {
			_, err = resource.Namespace(o.GetNamespace()).Create(context.Background(), o, metav1.CreateOptions{})
		}
		check(ts, err)
	}
}

// cmdAdmission configures a webhook at the API server. No replica of it runs; the
// argument is whether its pod claims to be ready: "admission true", "admission
// false".
func cmdAdmission(ts *testscript.TestScript, _ bool, args []string) {
	c := clusters[of(ts)]
	c.install(ts, func(o *unstructured.Unstructured) bool {
		return o.GetKind() == "ValidatingWebhookConfiguration" || o.GetKind() == "Service"
	}, "--set", "webhook.enabled=true")
	labels, err := metav1.ParseToLabelSelector(kube.WebhookSelector)
	ts.Check(err)
	pods := c.client.CoreV1().Pods(namespace)
	if err := pods.Delete(context.Background(), "webhook-x", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); !apierrors.IsNotFound(err) {
		ts.Check(err)
	}
	c.pod(ts, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "webhook-x", Labels: labels.MatchLabels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "webhook", Image: "none"}}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: map[string]corev1.ConditionStatus{"true": corev1.ConditionTrue, "false": corev1.ConditionFalse}[args[0]]}}},
	})
}

// pod creates a pod with its status and returns its UID.
func (c *cluster) pod(ts *testscript.TestScript, pod *corev1.Pod) string {
	pods := c.client.CoreV1().Pods(pod.Namespace)
	made, err := pods.Create(context.Background(), pod, metav1.CreateOptions{})
	ts.Check(err)
	made.Status = pod.Status
	_, err = pods.UpdateStatus(context.Background(), made, metav1.UpdateOptions{})
	ts.Check(err)
	return string(made.UID)
}

// token returns a token of a service account; an empty audience means the API
// server.
func (c *cluster) token(ts *testscript.TestScript, namespace, account, audience string) string {
	request := &authenticationv1.TokenRequest{}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(context.Background(), account, request, metav1.CreateOptions{})
	ts.Check(err)
	return answer.Status.Token
}

// kubeconfig writes the kubeconfig of a service account.
func (c *cluster) kubeconfig(ts *testscript.TestScript, file, namespace, account string) {
	c.kubeconfigOf(ts, file, c.token(ts, namespace, account, ""))
}

// kubeconfigOf writes a kubeconfig with a token.
func (c *cluster) kubeconfigOf(ts *testscript.TestScript, file, token string) {
	ca, _ := c.server.CA()
	ts.Check(os.WriteFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: default}}]
current-context: x
`, apiserver.URL(), base64.StdEncoding.EncodeToString(ca), token), 0o600))
}

// cmdBind binds a pod of namespace default to the script's node, as a scheduler
// does: "bind POD".
func cmdBind(ts *testscript.TestScript, _ bool, args []string) {
	n, ctx := of(ts), context.Background()
	pods := clusters[n].client.CoreV1().Pods("default")
	ts.Check(pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: args[0]}, Target: corev1.ObjectReference{Kind: "Node", Name: "node1"}}, metav1.CreateOptions{}))
	pod, err := pods.Get(ctx, args[0], metav1.GetOptions{})
	ts.Check(err)
	n.uids[args[0]] = string(pod.UID)
}

// cmdUser creates a service account in namespace default that may get pods and has
// the given roles of kube-system, or cluster roles as "ClusterRole/NAME": "user
// NAME [ROLE...]". Its kubeconfig is NAME.kubeconfig.
func cmdUser(ts *testscript.TestScript, _ bool, args []string) {
	n, ctx := of(ts), context.Background()
	c, name := clusters[n], args[0]
	_, err := c.client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	ts.Check(err)
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: name}}
	_, err = c.client.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	ts.Check(err)
	_, err = c.client.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
	}, metav1.CreateOptions{})
	ts.Check(err)
	for _, role := range args[1:] {
		if of, ok := strings.CutPrefix(role, "ClusterRole/"); ok {
			_, err = c.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: name + "-" + of}, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: of},
			}, metav1.CreateOptions{})
			ts.Check(err)
			continue
		}
		_, err = c.client.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name + "-" + role}, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role},
		}, metav1.CreateOptions{})
		ts.Check(err)
	}
	c.kubeconfig(ts, n.path(name+".kubeconfig"), "default", name)
}

// cmdAsk calls the agent directly, with the token of a service account for an
// audience, "ask STATUS NAMESPACE ACCOUNT AUDIENCE", or without a token: "ask
// STATUS".
func cmdAsk(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://%s:%d/manifold/v1/node", agentAddress, agentPort), nil)
	ts.Check(err)
	if len(args) > 1 {
		req.Header.Set(kube.TokenHeader, clusters[of(ts)].token(ts, args[1], args[2], args[3]))
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if resp.StatusCode != want {
		ts.Fatalf("status %s: %s", resp.Status, body)
	}
}
