package kubetest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *kubetest.Server {
	t.Helper()
	srv := kubetest.Start()
	t.Cleanup(func() { srv.Stop(); http.DefaultClient.CloseIdleConnections() })
	return srv
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-1"}, Spec: corev1.PodSpec{NodeName: node}}
}

// call sends a request and returns code and body.
func call(t *testing.T, srv *kubetest.Server, method, path, contentType, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestRequests(t *testing.T) {
	srv := start(t)
	srv.AddPod(pod("web", "node1"))
	const (
		web    = "/api/v1/namespaces/default/pods/web"
		events = "/api/v1/namespaces/default/events"
		nads   = "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions"
		merge  = "application/merge-patch+json"
	)
	tests := []struct {
		method, path, contentType, body string
		code                            int
		contains                        string
	}{
		{"GET", web, "", "", 200, `"nodeName":"node1"`},
		{"GET", web + "x", "", "", 404, `"name":"webx"`},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1", "", "", 200, `"name":"web"`},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode2", "", "", 200, `"items":[]`},
		{"GET", "/api/v1/namespaces/other/pods", "", "", 200, `"items":[]`},
		{"GET", "/api/v1/pods?fieldSelector=%3D%3D%3D", "", "", 400, "Status"},
		{"GET", nads, "", "", 200, `"kind":"NetworkAttachmentDefinitionList"`},
		{"GET", "/apis/k8s.cni.cncf.io/v1/pods", "", "", 404, "page not found"},
		{"GET", "/api/v1/network-attachment-definitions", "", "", 404, "page not found"},
		{"GET", "/api/v1/secrets", "", "", 404, "page not found"},
		{"GET", "/healthz", "", "", 404, "page not found"},
		{"GET", web + "/log/x", "", "", 404, "page not found"},
		{"DELETE", web, "", "", 405, "MethodNotAllowed"},
		{"PATCH", web, merge, `{"metadata":{"uid":"uid-1","annotations":{"a":"1","b":"2"}}}`, 200, `"a":"1"`},
		{"PATCH", web, merge, `{"metadata":{"annotations":{"a":null}}}`, 200, `"annotations":{"b":"2"}`},
		{"PATCH", web, merge, `{"metadata":{"uid":"other"}}`, 409, "UID in object meta: uid-1"},
		{"PATCH", web, "application/json-patch+json", `[]`, 415, "UnsupportedMediaType"},
		{"PATCH", web, merge, `[]`, 400, "BadRequest"},
		{"PATCH", web + "x", merge, `{}`, 404, "NotFound"},
		{"POST", events, "application/json", `{"metadata":{"name":"e","namespace":"default"}}`, 201, `"uid"`},
		{"POST", events, "application/json", `{"metadata":{"name":"e"}}`, 409, "AlreadyExists"},
		{"POST", events, "application/json", `{"metadata":{"name":"e","namespace":"other"}}`, 400, "namespace"},
		{"POST", events, "application/json", `{`, 400, "BadRequest"},
		{"POST", events, "application/json", strings.Repeat(" ", 3<<20+1), 413, "RequestEntityTooLarge"},
	}
	for i, tt := range tests {
		code, body := call(t, srv, tt.method, tt.path, tt.contentType, tt.body)
		if code != tt.code || !strings.Contains(body, tt.contains) {
			t.Errorf("%s %s: %d %s, want %d with %s", tt.method, tt.path, code, body, tt.code, tt.contains)
		}
		if r := srv.Requests()[i]; r.Method != tt.method || r.Code != tt.code || r.ContentType != tt.contentType {
			t.Errorf("recorded %+v", r)
		}
	}
	srv.ForgetRequests()
	if r := srv.Requests(); len(r) != 0 {
		t.Errorf("%d requests", len(r))
	}
}

// event returns the next watch event in short: type, name, resource version.
func event(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		return "end"
	}
	var e struct {
		Type   string
		Object struct {
			Metadata metav1.ObjectMeta
			Code     int
		}
	}
	if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
		t.Fatal(err)
	}
	if e.Type == "ERROR" {
		return fmt.Sprint("ERROR ", e.Object.Code)
	}
	return strings.TrimSpace(e.Type + " " + e.Object.Metadata.Name)
}

func watch(t *testing.T, srv *kubetest.Server, query string) *bufio.Scanner {
	t.Helper()
	resp, err := http.Get(srv.URL() + "/api/v1/pods?watch=true&" + query)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return bufio.NewScanner(resp.Body)
}

func wantEvents(t *testing.T, lines *bufio.Scanner, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := event(t, lines); got != w {
			t.Errorf("event %q, want %q", got, w)
		}
	}
}

func TestWatch(t *testing.T) {
	srv := start(t)
	srv.AddPod(pod("a", "node1"))
	lines := watch(t, srv, "sendInitialEvents=true&fieldSelector=spec.nodeName%3Dnode1")
	wantEvents(t, lines, "ADDED a", "BOOKMARK")
	version := srv.Pod("default", "a").ResourceVersion
	srv.AddPod(pod("b", "node2")) // not selected
	srv.AddPod(pod("b", "node1")) // selected now
	srv.AddPod(pod("a", "node1"))
	srv.AddPod(pod("a", "node2")) // no longer selected
	srv.DeletePod("default", "b")
	srv.DeletePod("default", "b") // does nothing
	want := []string{"ADDED b", "MODIFIED a", "DELETED a", "DELETED b"}
	wantEvents(t, lines, want...)
	srv.CloseWatches()
	wantEvents(t, lines, "end")

	lines = watch(t, srv, "fieldSelector=spec.nodeName%3Dnode1&resourceVersion="+version)
	wantEvents(t, lines, want...)
	srv.Expire()
	wantEvents(t, watch(t, srv, "resourceVersion="+version), "ERROR 410", "end")
}

func TestWatchRefused(t *testing.T) {
	srv := start(t)
	srv.DisableStreaming()
	for query, want := range map[string]int{
		"sendInitialEvents=true": 422, "resourceVersion=x": 400, "fieldSelector=%3D%3D%3D": 400,
	} {
		if code, _ := call(t, srv, "GET", "/api/v1/pods?watch=true&"+query, "", ""); code != want {
			t.Errorf("%s: %d", query, code)
		}
	}
}

func TestFailures(t *testing.T) {
	srv := start(t)
	srv.AddDefinition(&netattach.Definition{ObjectMeta: metav1.ObjectMeta{Name: "net"}})
	const path = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions/net"
	srv.FailNext(401, 403, 404, 409, 422, 429, 503, 504, 500)
	for _, want := range []int{401, 403, 404, 409, 422, 429, 503, 504, 500, 200} {
		if code, body := call(t, srv, "GET", path, "", ""); code != want {
			t.Errorf("%d %s, want %d", code, body, want)
		}
	}
	srv.FailWith(503)
	for range 2 {
		if code, _ := call(t, srv, "GET", path, "", ""); code != 503 {
			t.Errorf("%d while failing", code)
		}
	}
	srv.FailWith(0)
	srv.ForbidFollowing(netattach.Resource)
	for target, want := range map[string]int{path: 200, strings.TrimSuffix(path, "/net"): 403, strings.TrimSuffix(path, "/net") + "?watch=true": 403, "/api/v1/pods": 200} {
		if code, _ := call(t, srv, "GET", target, "", ""); code != want {
			t.Errorf("GET %s: %d, want %d", target, code, want)
		}
	}
	srv.ForbidFollowing("")
	srv.DeleteDefinition("default", "net")
	if code, _ := call(t, srv, "GET", path, "", ""); code != 404 {
		t.Errorf("%d after the deletion", code)
	}
}

func TestPauseStopRestart(t *testing.T) {
	srv := start(t)
	srv.AddPod(pod("web", "node1"))
	lines := watch(t, srv, "")
	wantEvents(t, lines, "ADDED web")
	srv.Pause()
	srv.Pause() // does nothing
	srv.AddPod(pod("while-paused", "node1"))
	answered := make(chan int)
	go func() {
		resp, err := http.Get(srv.URL() + "/api/v1/namespaces/default/pods/web")
		if err != nil {
			answered <- 0
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	for len(srv.Requests()) < 2 { // until the request has arrived
		time.Sleep(time.Millisecond)
	}
	select {
	case code := <-answered:
		t.Errorf("answered %d while paused", code)
	default:
	}
	srv.Resume()
	if code := <-answered; code != 200 {
		t.Errorf("answered %d", code)
	}
	wantEvents(t, lines, "ADDED while-paused")
	url := srv.URL()
	srv.Stop()
	srv.Stop() // does nothing
	if resp, err := http.Get(url + "/api/v1/pods"); err == nil {
		_ = resp.Body.Close()
		t.Error("answered while stopped")
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	if code, _ := call(t, srv, "GET", "/api/v1/namespaces/default/pods/web", "", ""); code != 200 || srv.URL() != url {
		t.Errorf("%d at %s after the restart", code, srv.URL())
	}
	if srv.Pod("default", "absent") != nil {
		t.Error("found a pod that was never added")
	}
}

func TestEvents(t *testing.T) {
	srv := start(t)
	for _, name := range []string{"b", "a"} {
		call(t, srv, "POST", "/api/v1/namespaces/default/events", "application/json", `{"metadata":{"name":"`+name+`"},"message":"m"}`)
	}
	events := srv.Events()
	if len(events) != 2 || events[0].Name != "a" || events[0].Message != "m" || events[0].UID == "" {
		t.Errorf("%+v", events)
	}
	srv.DeleteEvents()
	if e := srv.Events(); len(e) != 0 {
		t.Errorf("%+v", e)
	}
}

func TestKubeconfig(t *testing.T) {
	srv := start(t)
	path, err := srv.Kubeconfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Contains(data, []byte("server: "+srv.URL()+"\n")) {
		t.Errorf("%s, %v", data, err)
	}
	if _, err := srv.Kubeconfig(path); err == nil {
		t.Error("a file inside of a file")
	}
}

func Example() {
	srv := kubetest.Start()
	defer srv.Stop()
	srv.AddPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{NodeName: "node1"}})
	resp, err := http.Get(srv.URL() + "/api/v1/namespaces/default/pods/web")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	for _, r := range srv.Requests() {
		fmt.Println(r.Method, r.Path, r.Code)
	}
	// Output: GET /api/v1/namespaces/default/pods/web 200
}
