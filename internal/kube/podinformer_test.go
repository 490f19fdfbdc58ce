package kube

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
)

const podPath = "/api/v1/namespaces/default/pods/"

func TestPodInformerSelectsItsNode(t *testing.T) {
	for _, streaming := range []bool{true, false} {
		srv, client := startServer(t)
		if !streaming {
			srv.DisableStreaming()
		}
		srv.AddPod(newPod("mine", uidA, "node1"))
		srv.AddPod(newPod("theirs", uidB, "node2"))
		p := NewPodInformer(client, "node1")
		run(t, p)
		eventually(t, "synced", p.HasSynced)
		if keys := p.informer.GetStore().ListKeys(); !cmp.Equal(keys, []string{"default/mine"}) {
			t.Errorf("streaming %v: the informer has %v", streaming, keys)
		}
		for _, r := range srv.Requests() {
			q, err := url.ParseQuery(r.Query)
			if err != nil || q.Get("fieldSelector") != "spec.nodeName=node1" {
				t.Errorf("streaming %v: a request without the node's selector: %+v", streaming, r)
			}
		}
	}
}

func TestPodInformerAnswersFromMemory(t *testing.T) {
	srv, client := startServer(t)
	srv.AddPod(newPod("web", uidA, "node1"))
	p := NewPodInformer(client, "node1")
	run(t, p)
	eventually(t, "synced", p.HasSynced)
	srv.Stop()
	for _, uid := range []string{uidA, ""} {
		pod, err := p.Pod(context.Background(), "default", "web", uid)
		if err != nil || pod.UID != uidA {
			t.Errorf("UID %q: %v, %v", uid, pod, err)
		}
	}
	if n := count(srv, http.MethodGet, podPath+"web"); n != 0 {
		t.Errorf("%d direct requests", n)
	}
	_, err := p.Pod(context.Background(), "default", "web", uidB)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
		t.Errorf("another UID with the server down: %v", err)
	}
}

// A pod that the informer does not know yet, or knows under an older UID, costs one
// GET.
func TestPodInformerLagging(t *testing.T) {
	srv, client := startServer(t)
	p := NewPodInformer(client, "node1") // never run: it lags forever
	srv.AddPod(newPod("web", uidB, "node1"))
	pod, err := p.Pod(context.Background(), "default", "web", uidB)
	if err != nil || pod.UID != uidB {
		t.Fatalf("%v, %v", pod, err)
	}
	if err := p.informer.GetStore().Add(newPod("web", uidA, "node1")); err != nil {
		t.Fatal(err)
	}
	if pod, err = p.Pod(context.Background(), "default", "web", uidB); err != nil || pod.UID != uidB {
		t.Errorf("recreated: %v, %v", pod, err)
	}
	if n := count(srv, http.MethodGet, podPath+"web"); n != 2 {
		t.Errorf("%d requests for two misses", n)
	}
}

func TestPodInformerErrors(t *testing.T) {
	srv, _ := startServer(t)
	// Long enough for client-go's own retries, which a lookup must not make.
	p := NewPodInformer(connect(t, srv, time.Minute), "node1")
	srv.AddPod(newPod("web", uidA, "node1"))
	tests := []struct {
		name                string
		namespace, pod, uid string
		fail                int
		want                error
		text                []string
		requests            int
	}{
		{"missing", "default", "gone", uidA, 0, ErrNotFound, []string{"pod default/gone"}, 1},
		{"other UID", "default", "web", uidB, 0, ErrNotFound, []string{uidA, uidB}, 1},
		{"forbidden", "default", "web", uidA, 403, ErrUnavailable, []string{"failing as told"}, 1},
		{"too many", "default", "web", uidA, 429, ErrUnavailable, nil, 1},
		{"broken", "default", "web", uidA, 500, ErrUnavailable, nil, 1},
		{"unnamed 404", "default", "web", uidA, 404, ErrUnavailable, nil, 1},
		{"path", "default", "../secrets", "", 0, ErrInvalid, []string{`"../secrets"`}, 0},
		{"no name", "default", "", "", 0, ErrInvalid, nil, 0},
		{"no namespace", "", "web", "", 0, ErrInvalid, nil, 0},
		{"long", "default", strings.Repeat("a", 254), "", 0, ErrInvalid, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv.ForgetRequests()
			srv.FailWith(tt.fail)
			_, err := p.Pod(context.Background(), tt.namespace, tt.pod, tt.uid)
			wantError(t, err, tt.want, tt.text...)
			if n := len(srv.Requests()); n != tt.requests {
				t.Errorf("%d requests, want %d", n, tt.requests)
			}
		})
	}
}

// A client that may not list or watch pods asks for each one, and reports the refusal
// once. When the permission comes later, it watches them.
func TestPodInformerMayNotFollow(t *testing.T) {
	srv, client := startServer(t)
	srv.AddPod(newPod("web", uidA, "node1"))
	srv.ForbidFollowing(resourcePods)
	p, told := NewPodInformer(client, "node1"), make(chan error, 10)
	p.OnForbidden(func(error) { told <- p.Forbidden() })
	if err := p.Forbidden(); err != nil {
		t.Errorf("before anybody was asked: %v", err)
	}
	run(t, p)
	eventually(t, "refused again", func() bool { return p.Forbidden() != nil && len(srv.Requests()) > 1 })
	if pod, err := p.Pod(context.Background(), "default", "web", uidA); err != nil || pod.Name != "web" {
		t.Errorf("%v, %v", pod, err)
	}
	srv.ForbidFollowing("")
	eventually(t, "synced", p.HasSynced)
	if err := p.Forbidden(); err != nil || len(told) != 1 || <-told == nil {
		t.Errorf("reported %d times, now %v", len(told), err)
	}
	srv.ForbidFollowing(resourcePods)
	srv.CloseWatches()
	srv.Expire()
	eventually(t, "failing", func() bool { _, err := p.Failing(); return err != nil })
	if err := p.Forbidden(); err != nil || len(told) > 0 { // memory still answers
		t.Errorf("reported again %d times, now %v", len(told), err)
	}
}

// wantError requires err to match one sentinel and no other, and to contain text.
func wantError(t *testing.T, err, want error, text ...string) {
	t.Helper()
	for _, sentinel := range []error{ErrNotFound, ErrUnavailable, ErrInvalid} {
		if got := errors.Is(err, sentinel); got != errors.Is(want, sentinel) {
			t.Errorf("%q: is %q: %v", err, sentinel, got)
		}
	}
	for _, s := range text {
		if err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func TestPodMirrorUID(t *testing.T) {
	const kubelet = "0123456789abcdef0123456789abcdef"
	mirror := newPod("etcd-node1", uidA, "node1")
	mirror.Annotations[annotationConfigMirror], mirror.Annotations[annotationConfigHash] = kubelet, kubelet
	posing := newPod("posing", uidA, "node1")
	posing.Annotations[annotationConfigHash] = kubelet // not a mirror: the annotation is only the user's text
	srv, client := startServer(t)
	srv.AddPod(mirror)
	srv.AddPod(posing)
	p := NewPodInformer(client, "node1")
	pod, err := p.Pod(context.Background(), "default", "etcd-node1", kubelet)
	if err != nil || !IsMirror(pod) || !IsStatic(pod) {
		t.Errorf("mirror pod: %v, %v", pod, err)
	}
	_, err = p.Pod(context.Background(), "default", "posing", kubelet)
	wantError(t, err, ErrNotFound, uidA, kubelet)
}

func TestPodInformerFollows(t *testing.T) {
	srv, client := startServer(t)
	p := NewPodInformer(client, "node1")
	run(t, p)
	eventually(t, "synced", p.HasSynced)
	has := func(name string) func() bool {
		return func() bool { _, ok, _ := p.informer.GetStore().GetByKey("default/" + name); return ok }
	}
	srv.AddPod(newPod("first", uidA, "node1"))
	eventually(t, "a pod added", has("first"))
	srv.CloseWatches()
	srv.AddPod(newPod("second", uidA, "node1"))
	eventually(t, "a pod added after the watch was closed", has("second"))
	srv.Stop()
	srv.AddPod(newPod("third", uidA, "node1"))
	srv.DeletePod("default", "first")
	srv.Expire()
	eventually(t, "failing", func() bool { since, err := p.Failing(); return err != nil && !since.IsZero() })
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod added while down", has("third"))
	eventually(t, "a pod deleted while down", func() bool { return !has("first")() })
	if since, err := p.Failing(); err != nil || !since.IsZero() {
		t.Errorf("failing since %v after recovery: %v", since, err)
	}
}

func TestTrimPod(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	limits := corev1.ResourceRequirements{Limits: corev1.ResourceList{"vendor.example/vfs": resource.MustParse("2")}}
	in := newPod("web", uidA, "node1")
	in.Annotations[corev1.LastAppliedConfigAnnotation] = "{}"
	in.Annotations["kubernetes.io/config.source"] = "file" // in the API this is the user's text
	in.Labels = map[string]string{"a": "b"}
	in.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	in.ResourceVersion = "7"
	in.Spec.HostNetwork = true
	in.Spec.Volumes = []corev1.Volume{{Name: "v"}}
	in.Spec.Containers[0].Resources = limits
	in.Spec.InitContainers = []corev1.Container{{Name: "side", Command: []string{"x"}, RestartPolicy: &always}}
	in.Status = corev1.PodStatus{Phase: corev1.PodRunning, Message: "m"}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web", UID: uidA, ResourceVersion: "7",
			Annotations: map[string]string{netattach.NetworksAnnotation: "net1"},
		},
		Spec: corev1.PodSpec{
			NodeName: "node1", HostNetwork: true,
			InitContainers: []corev1.Container{{Name: "side", RestartPolicy: &always}},
			Containers:     []corev1.Container{{Name: "main", Resources: limits}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if diff := cmp.Diff(want, trimPod(in)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, trimPod(in)); diff != "" {
		t.Error("a second time: " + diff)
	}
}
