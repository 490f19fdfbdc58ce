package install

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/kube"
)

// Await starts before the DaemonSet exists, and ends when it is ready everywhere.
func TestAwaitDaemonSet(t *testing.T) {
	answers := []string{
		"", // does not exist yet
		`{"metadata":{"generation":1},"status":{"desiredNumberScheduled":0,"numberReady":0}}`,
		`{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"numberReady":1}}`,
		`{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"numberReady":2}}`,
	}
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[min(asked, len(answers)-1)]
		asked++
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path != "/apis/apps/v1/namespaces/ns/daemonsets/gone" || answer == "" {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`
		}
		fmt.Fprint(w, answer)
	}))
	defer srv.Close()
	client, err := kube.NewClient(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var out bytes.Buffer
	if err := awaitDaemonSet(context.Background(), client, "ns", "gone", &out); err != nil {
		t.Fatal(err)
	}
	if asked != len(answers) || !bytes.HasSuffix(out.Bytes(), []byte("ready on 1 of 2 nodes\nready on 2 of 2 nodes\n")) {
		t.Errorf("after %d questions it says:\n%s", asked, out.Bytes())
	}
}
