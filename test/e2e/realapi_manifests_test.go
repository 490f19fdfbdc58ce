//go:build apiserver

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/manifests"
)

func init() {
	builds = append(builds, func() error {
		_, err := harness.Helm()
		return err
	})
}

// chart renders the chart with further arguments for helm.
func (n *realNode) chart(args ...string) []*unstructured.Unstructured {
	n.t.Helper()
	stream, err := manifests.Render("../..", args...)
	n.must(err)
	objects, err := manifests.Objects(stream)
	n.must(err)
	return objects
}

// apply creates objects and fails if the API server does not know one of their
// fields.
func (n *realNode) apply(objects []*unstructured.Unstructured, dryRun ...string) {
	n.t.Helper()
	client, err := dynamic.NewForConfig(n.server.Config())
	n.must(err)
	for _, o := range objects {
		if o.GroupVersionKind().Group == "security.openshift.io" {
			n.t.Logf("%s is a kind of OpenShift and is skipped", o.GetKind())
			continue
		}
		resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		var to dynamic.ResourceInterface = client.Resource(resource)
		if ns := o.GetNamespace(); ns != "" {
			to = client.Resource(resource).Namespace(ns)
		}
		if _, err := to.Create(context.Background(), o, metav1.CreateOptions{FieldValidation: "Strict", DryRun: dryRun}); err != nil {
			n.t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// TestRealAPITakesTheChart covers every preset and other values that change the
// objects.
func TestRealAPITakesTheChart(t *testing.T) {
	n := newRealNode(t)
	for _, args := range [][]string{
		{"--set", "reconcile=repair"}, {"--set", "reconcile=off,podsAPI=true"}, {"--set", "dra=true,podsAPI=false"}, {"--set", "startupTaint=manifold.dev/not-ready"},
	} {
		n.apply(n.renamed(n.chart(args...)), metav1.DryRunAll)
	}
	for _, preset := range manifests.Presets {
		n.apply(n.renamed(n.chart("-f", manifests.Preset(preset))), metav1.DryRunAll)
	}
}

// renamed gives the objects names that do not clash with those of the node's own
// agent.
func (n *realNode) renamed(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	for _, o := range objects {
		o.SetName(o.GetName() + "-chart")
	}
	return objects
}

// stolen is the access of somebody who has stolen the credential of node1's agent.
type stolen struct {
	*realNode
	client kubernetes.Interface
	config *rest.Config
}

// steal installs the chart, with pods on two nodes, and takes node1's credential.
func steal(t *testing.T, args ...string) *stolen {
	n := newRealNode(t)
	ctx := context.Background()
	n.must(n.client.RbacV1().ClusterRoles().Delete(ctx, "manifold", metav1.DeleteOptions{}))
	n.must(n.client.RbacV1().ClusterRoleBindings().Delete(ctx, "manifold", metav1.DeleteOptions{}))
	n.apply(n.chart(append(args, "--kube-version", "1.37.0")...))
	for _, node := range []string{"node1", "node2"} {
		_, err := n.client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "app-" + node, Annotations: map[string]string{"keep": "this"}, Labels: map[string]string{"app": "app"}},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}, metav1.CreateOptions{})
		n.must(err)
	}
	agent, err := n.client.CoreV1().Pods("kube-system").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "manifold-1"},
		Spec:       corev1.PodSpec{NodeName: "node1", ServiceAccountName: "manifold", Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}, metav1.CreateOptions{})
	n.must(err)
	config := n.account("manifold", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: agent.Name, UID: agent.UID})
	client, err := kubernetes.NewForConfig(config)
	n.must(err)
	return &stolen{n, client, config}
}

// account returns the access of one of the chart's service accounts, with a token
// that is bound to an object if one is given.
func (n *realNode) account(name string, to *authenticationv1.BoundObjectReference) *rest.Config {
	n.t.Helper()
	token, err := n.client.CoreV1().ServiceAccounts("kube-system").CreateToken(context.Background(), name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: to}}, metav1.CreateOptions{})
	n.must(err)
	admin := n.server.Config()
	return &rest.Config{Host: admin.Host, TLSClientConfig: admin.TLSClientConfig, BearerToken: token.Status.Token}
}

// TestRealAPIStartupTaint proves that the agent's credential can remove the taint
// of its node and change nothing else of any node.
func TestRealAPIStartupTaint(t *testing.T) {
	const key = "manifold.dev/not-ready"
	s := steal(t, "--set", "startupTaint="+key)
	ctx, nodes := context.Background(), s.realNode.client.CoreV1().Nodes()
	taints := []corev1.Taint{{Key: "other", Effect: corev1.TaintEffectNoSchedule}, {Key: key, Effect: corev1.TaintEffectNoSchedule}}
	for _, name := range []string{"node1", "node2"} {
		_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints}}, metav1.CreateOptions{})
		s.must(err)
	}
	patch := func(node, body string) error {
		_, err := s.client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(body), metav1.PatchOptions{})
		return err
	}
	s.eventually("the policy to take effect", func() bool { return apierrors.IsForbidden(patch("node2", `{"metadata":{"labels":{"a":"b"}}}`)) })
	for _, body := range []string{
		`{"spec":{"taints":null}}`, `{"spec":{"unschedulable":true}}`, `{"metadata":{"labels":{"a":"b"}}}`,
		`{"spec":{"taints":[{"key":"` + key + `","effect":"NoSchedule"}]}}`,
	} {
		if err := patch("node1", body); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", body, err)
		}
	}
	client, err := kube.NewClient(s.config)
	s.must(err)
	defer client.Close()
	for range 2 { // without the taint, the second call does nothing
		s.must(kube.NewWriter(client, "manifold", "node1").RemoveTaint(ctx, key))
	}
	node, err := nodes.Get(ctx, "node1", metav1.GetOptions{})
	s.must(err)
	has := func(key string) bool {
		return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
	}
	if has(key) || !has("other") {
		t.Errorf("remaining taints: %v", node.Spec.Taints)
	}
	if err := kube.NewWriter(client, "manifold", "node2").RemoveTaint(ctx, key); err == nil {
		t.Error("it removed the taint of another node")
	}
}

// TestRealAPIUninstallationIsAwaited proves that the service account of the
// uninstallation can only read its own DaemonSet.
func TestRealAPIUninstallationIsAwaited(t *testing.T) {
	n := steal(t)
	client, err := kube.NewClient(n.account("manifold-uninstall", nil))
	n.must(err)
	defer client.Close()
	ctx := context.Background()
	n.eventually("its permission to take effect", func() bool {
		_, all, err := client.DaemonSetReady(ctx, "kube-system", "manifold-uninstall")
		return err == nil && all == -1 // no controller runs
	})
	if _, _, err := client.DaemonSetReady(ctx, "kube-system", "manifold"); err == nil {
		t.Error("it can read another DaemonSet")
	}
	sets := n.realNode.client.AppsV1().DaemonSets("kube-system")
	ds, err := sets.Get(ctx, "manifold-uninstall", metav1.GetOptions{})
	n.must(err)
	ds.Status.ObservedGeneration, ds.Status.DesiredNumberScheduled, ds.Status.NumberReady = ds.Generation, 2, 1
	_, err = sets.UpdateStatus(ctx, ds, metav1.UpdateOptions{})
	n.must(err)
	if ready, all, err := client.DaemonSetReady(ctx, "kube-system", "manifold-uninstall"); ready != 1 || all != 2 || err != nil {
		t.Errorf("%d of %d, %v", ready, all, err)
	}
}

// patch applies a merge patch to a pod.
func (s *stolen) patch(pod, body string) error {
	_, err := s.client.CoreV1().Pods("default").Patch(context.Background(), pod, types.MergePatchType, []byte(body), metav1.PatchOptions{})
	return err
}

// TestRealAPIStolenCredential proves that a node's credential can only change the
// network-status of the node's pods.
func TestRealAPIStolenCredential(t *testing.T) {
	s := steal(t)
	status := func(text string) string {
		return fmt.Sprintf(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":%q}}}`, text)
	}
	s.eventually("the policy to take effect", func() bool { return apierrors.IsForbidden(s.patch("app-node2", status("[]"))) })
	for _, text := range []string{"[]", "[{}]"} { // set, then changed
		if err := s.patch("app-node1", status(text)); err != nil {
			t.Errorf("the status of its own pod: %v", err)
		}
	}
	if err := s.patch("app-node2", status("[]")); err == nil || !strings.Contains(err.Error(), `node "node1"`) {
		t.Errorf("another node's pod: %v", err)
	}
	for _, body := range []string{
		`{"metadata":{"annotations":{"more":"1"}}}`, `{"metadata":{"annotations":{"keep":"that"}}}`, `{"metadata":{"annotations":{"keep":null}}}`,
		`{"metadata":{"labels":{"app":"other"}}}`, `{"metadata":{"labels":{"app":null}}}`, `{"metadata":{"finalizers":["a.example/b"]}}`,
		`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"y"}]}}`,
		`{"spec":{"containers":[{"name":"c","image":"evil"}]}}`, `{"spec":{"activeDeadlineSeconds":1}}`,
	} {
		if err := s.patch("app-node1", body); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", body, err)
		}
	}
	ctx := context.Background()
	_, list := s.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	_, secrets := s.client.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{})
	for what, err := range map[string]error{
		"delete a pod": s.client.CoreV1().Pods("default").Delete(ctx, "app-node1", metav1.DeleteOptions{}), "list pods": list, "list secrets": secrets,
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
