package kube

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

const status = `[{"name":"default/net1","interface":"net1","dns":{}}]`

// claimedPod has fields that an update of the whole status would destroy.
func claimedPod() *corev1.Pod {
	pod := newPod("web", uidA, "node1")
	claim := "web-claim-x"
	pod.Labels = map[string]string{"app": "web"}
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.1",
		ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "claim", ResourceClaimName: &claim}},
	}
	return pod
}

func TestPublishStatus(t *testing.T) {
	srv, client := startServer(t)
	srv.AddPod(claimedPod())
	before := srv.Pod("default", "web")
	w := NewWriter(client, "manifold-agent", "node1")
	if err := w.PublishStatus(context.Background(), "default", "web", uidA, status); err != nil {
		t.Fatal(err)
	}
	want := []kubetest.Request{{
		Method: http.MethodPatch, Path: podPath + "web", ContentType: "application/merge-patch+json", Code: 200,
		Body: `{"metadata":{"uid":"` + uidA + `","annotations":{"k8s.v1.cni.cncf.io/network-status":` +
			`"[{\"name\":\"default/net1\",\"interface\":\"net1\",\"dns\":{}}]"}}}`,
	}}
	if diff := cmp.Diff(want, srv.Requests(), cmpopts.IgnoreFields(kubetest.Request{}, "UserAgent")); diff != "" {
		t.Error(diff)
	}
	after := srv.Pod("default", "web")
	if after.Annotations[netattach.StatusAnnotation] != status {
		t.Errorf("annotation %q", after.Annotations[netattach.StatusAnnotation])
	}
	delete(after.Annotations, netattach.StatusAnnotation)
	if diff := cmp.Diff(before, after, cmpopts.IgnoreFields(metav1.ObjectMeta{}, "ResourceVersion")); diff != "" {
		t.Error("the rest of the pod changed: " + diff)
	}
}

func TestPublishStatusWithoutUID(t *testing.T) {
	srv, client := startServer(t)
	srv.AddPod(claimedPod())
	w := NewWriter(client, "manifold-agent", "node1")
	if err := w.PublishStatus(context.Background(), "default", "web", "", status); err != nil {
		t.Fatal(err)
	}
	if body := srv.Requests()[0].Body; strings.Contains(body, "uid") {
		t.Error(body)
	}
}

func TestPublishStatusNeverTouchesAnotherPod(t *testing.T) {
	srv, client := startServer(t)
	srv.AddPod(claimedPod())
	w := NewWriter(client, "manifold-agent", "node1")
	err := w.PublishStatus(context.Background(), "default", "web", uidB, status)
	wantError(t, err, ErrNotFound, uidA, uidB)
	if !apierrors.IsConflict(err) {
		t.Errorf("%v lost its cause", err)
	}
	if _, ok := srv.Pod("default", "web").Annotations[netattach.StatusAnnotation]; ok {
		t.Error("the status was written")
	}
	if n := count(srv, http.MethodPatch, podPath+"web"); n != 1 {
		t.Errorf("%d PATCHes", n)
	}
	srv.FailNext(422) // as other versions of the API server report it
	wantError(t, w.PublishStatus(context.Background(), "default", "web", uidB, status), ErrNotFound, uidA, uidB)
	srv.FailNext(409)
	wantError(t, w.PublishStatus(context.Background(), "default", "gone", uidB, status), ErrNotFound, "default/gone")
	err = w.PublishStatus(context.Background(), "default", "gone", uidB, status)
	wantError(t, err, ErrNotFound, "default/gone")
}

func TestPublishStatusRetries(t *testing.T) {
	tests := []struct {
		name    string
		codes   []int
		want    error
		patches int
		done    bool
	}{
		{"busy", []int{429}, nil, 2, true},
		{"broken, unavailable, timed out", []int{500, 503, 504}, nil, 4, true},
		{"always broken", []int{500, 500, 500, 500, 500}, ErrUnavailable, writeAttempts, false},
		{"forbidden", []int{403}, nil, 1, false},
		{"conflict of another kind", []int{409}, ErrUnavailable, 1, false},
		{"refused", []int{422}, nil, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv, client := startServer(t)
			srv.AddPod(claimedPod())
			srv.FailNext(tt.codes...)
			err := NewWriter(client, "manifold-agent", "node1").PublishStatus(context.Background(), "default", "web", uidA, status)
			wantError(t, err, tt.want)
			if (err == nil) != tt.done {
				t.Errorf("error %v", err)
			}
			if n := count(srv, http.MethodPatch, podPath+"web"); n != tt.patches {
				t.Errorf("%d PATCHes, want %d", n, tt.patches)
			}
		})
	}
}

// TestRetryGivesASlowServerTime: a slow server is answered by the third attempt at the
// latest, and one that never answers is given up.
func TestRetryGivesASlowServerTime(t *testing.T) {
	const never = time.Hour
	for takes, attempts := range map[time.Duration]int{time.Second: 1, 7 * time.Second: 2, 12 * time.Second: 3, never: writeAttempts} {
		synctest.Test(t, func(t *testing.T) { // with fake time, which passes only in sleep
			sent := 0
			err := (&Client{timeout: defaultTimeout}).retry(t.Context(), func(ctx context.Context) error {
				sent++
				if !sleep(ctx, takes) {
					return ctx.Err()
				}
				return nil
			})
			if (err != nil) != (takes == never) || sent != attempts {
				t.Errorf("an answer that takes %s: %v after %d attempts, want %d", takes, err, sent, attempts)
			}
		})
	}
}

func TestPublishStatusUnreachable(t *testing.T) {
	srv, _ := startServer(t)
	srv.AddPod(claimedPod())
	w := NewWriter(connect(t, srv, 20*time.Millisecond), "manifold-agent", "node1")
	srv.Pause()
	err := w.PublishStatus(context.Background(), "default", "web", uidA, status)
	wantError(t, err, ErrUnavailable)
	// On a busy machine an attempt may end before its request arrives.
	if n := count(srv, http.MethodPatch, podPath+"web"); n < 1 || n > writeAttempts {
		t.Errorf("%d PATCHes to a silent server", n)
	}
	srv.Stop()
	wantError(t, w.PublishStatus(context.Background(), "default", "web", uidA, status), ErrUnavailable)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, w.PublishStatus(ctx, "default", "web", uidA, status), ErrUnavailable, "context canceled")
}

func TestPublishStatusRefuses(t *testing.T) {
	srv, client := startServer(t)
	w := NewWriter(client, "manifold-agent", "node1")
	wantError(t, w.PublishStatus(context.Background(), "default", "web", uidA, strings.Repeat("x", maxAnnotations+1)), ErrInvalid)
	wantError(t, w.PublishStatus(context.Background(), "default", "../web", uidA, status), ErrInvalid)
	wantError(t, w.Event(context.Background(), PodRef{Namespace: "", Name: "web"}, "Normal", "R", "m"), ErrInvalid)
	if reqs := srv.Requests(); len(reqs) != 0 {
		t.Errorf("requests: %+v", reqs)
	}
}

var webRef = PodRef{Namespace: "default", Name: "web", UID: uidA}

// send reports one Event about the pod web.
func send(t *testing.T, w *Writer, reason, message string) {
	t.Helper()
	if err := w.Event(context.Background(), webRef, corev1.EventTypeNormal, reason, message); err != nil {
		t.Fatal(err)
	}
}

func TestEvent(t *testing.T) {
	srv, client := startServer(t)
	send(t, NewWriter(client, "manifold-agent", "node1"), "AddedInterface", "Add net1")
	events := srv.Events()
	if len(events) != 1 {
		t.Fatalf("%d events", len(events))
	}
	e := events[0]
	want := corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "default", Name: "web", UID: uidA},
		Type:           "Normal", Reason: "AddedInterface", Message: "Add net1",
		Source:              corev1.EventSource{Component: "manifold-agent", Host: "node1"},
		ReportingController: "manifold-agent", ReportingInstance: "node1", Count: 1,
	}
	if diff := cmp.Diff(want, e, cmpopts.IgnoreFields(corev1.Event{}, "ObjectMeta", "FirstTimestamp", "LastTimestamp")); diff != "" {
		t.Error(diff)
	}
	if e.Namespace != "default" || !strings.HasPrefix(e.Name, "web.") || e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() {
		t.Errorf("%+v", e)
	}
}

func TestNodeEvent(t *testing.T) {
	srv, client := startServer(t)
	if err := NewWriter(client, "manifold-agent", "node1").NodeEvent(context.Background(), corev1.EventTypeWarning, "R", "m"); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, srv, "R: m (1)")
	want := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "node1", UID: "node1"}
	if e := srv.Events()[0]; e.InvolvedObject != want || e.Namespace != "default" || !strings.HasPrefix(e.Name, "node1.") {
		t.Errorf("%+v", e)
	}
	srv.FailWith(500)
	wantError(t, NewWriter(client, "manifold-agent", "node1").NodeEvent(context.Background(), "Warning", "R", "m"), ErrUnavailable, "node node1")
}

func TestEventAggregates(t *testing.T) {
	srv, client := startServer(t)
	w := NewWriter(client, "manifold-agent", "node1")
	key := eventKey{webRef.object(), corev1.EventTypeNormal, "NoDevice"}
	for range 5 {
		send(t, w, "NoDevice", "no device")
	}
	if n := len(srv.Requests()); n != 1 {
		t.Errorf("%d requests for five times the same", n)
	}
	send(t, w, "NoDevice", "still no device") // a new message is sent at once
	w.events[key].sent = time.Now().Add(-2 * eventQuiet)
	send(t, w, "NoDevice", "still no device") // a repetition is sent after a while
	wantEvents(t, srv, "NoDevice: still no device (7)")
	send(t, w, "Other", "something else")
	wantEvents(t, srv, "NoDevice: still no device (7)", "Other: something else (1)")
	srv.DeleteEvents()
	send(t, w, "NoDevice", "again")
	wantEvents(t, srv, "NoDevice: again (1)")
}

func wantEvents(t *testing.T, srv *kubetest.Server, want ...string) {
	t.Helper()
	var got []string
	for _, e := range srv.Events() {
		got = append(got, fmt.Sprintf("%s: %s (%d)", e.Reason, e.Message, e.Count))
	}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Error(diff)
	}
}

func TestEventFailures(t *testing.T) {
	srv, client := startServer(t)
	w := NewWriter(client, "manifold-agent", "node1")
	srv.FailWith(500)
	wantError(t, w.Event(context.Background(), webRef, "Warning", "R", "m"), ErrUnavailable, "default/web")
	srv.FailWith(0)
	srv.FailNext(503) // the second attempt creates it
	if err := w.Event(context.Background(), webRef, "Warning", "R", "m"); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, srv, "R: m (1)")
}

func TestEventsRemembered(t *testing.T) {
	w := NewWriter(nil, "manifold-agent", "node1")
	for i := range maxEvents {
		e := w.event(eventKey{reason: fmt.Sprint(i)})
		e.sent = time.Unix(int64(i+100), 0)
	}
	w.events[eventKey{reason: "7"}].sent = time.Unix(1, 0)
	held := w.events[eventKey{reason: "0"}]
	held.mu.Lock() // being written, so it must not be forgotten, however old
	held.sent = time.Unix(0, 0)
	w.event(eventKey{reason: "new"})
	held.mu.Unlock()
	if _, ok := w.events[eventKey{reason: "7"}]; ok || len(w.events) != maxEvents {
		t.Errorf("%d events, the oldest is kept: %v", len(w.events), ok)
	}
}

func TestCut(t *testing.T) {
	tests := []struct{ in, want string }{
		{"short", "short"},
		{"12345678", "12345678"},
		{"123456789", "12345…"},
		{"1234äöü", "1234…"}, // not in the middle of a character
		{"\xff\xfe", "\uFFFD"},
	}
	for _, tt := range tests {
		got := cut(tt.in, 8)
		if got != tt.want || len(got) > 8 || !utf8.ValidString(got) {
			t.Errorf("%q becomes %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestEventName(t *testing.T) {
	long := strings.Repeat("a", maxEventPrefix-1) + "." + strings.Repeat("b", 50)
	for _, pod := range []string{"web", long} {
		name := eventName(pod)
		if err := checkNames("event", "default", name); err != nil || name == eventName(pod) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
