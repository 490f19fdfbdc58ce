package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
)

// The taint is removed when the last check holds, by one PATCH that leaves the others.
func TestStartupTaintGoesWhenReady(t *testing.T) {
	var patches []string
	ready := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			body, err := io.ReadAll(r.Body)
			patches = append(patches, fmt.Sprint(ready, " ", string(body), err))
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1","resourceVersion":"7"},"spec":{"taints":[
			{"key":"other","effect":"NoSchedule"},{"key":"manifold.dev/not-ready","effect":"NoSchedule"}]}}`)
	}))
	defer srv.Close()
	client, err := kube.NewClient(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	a := &Assembly{writer: kube.NewWriter(client, "manifold", "node1"), Checks: []Check{{"any", func(context.Context) error {
		defer func() { ready = true }() // at the second check
		if !ready {
			return errors.New("not yet")
		}
		return nil
	}}}}
	a.untaint(context.Background(), "manifold.dev/not-ready", slog.New(slog.DiscardHandler))
	if len(patches) != 1 || !strings.HasPrefix(patches[0], "true ") || !strings.Contains(patches[0], `"resourceVersion":"7"`) ||
		!strings.Contains(patches[0], `"other"`) || strings.Contains(patches[0], "not-ready") {
		t.Errorf("%q", patches)
	}
}

// A node loses its startup taint whether or not the agent keeps a CNI configuration.
func TestStartupTaintWithoutAKeptConfiguration(t *testing.T) {
	r := runNode(t, func(r *running) { r.conf.CNIConfig, r.conf.StartupTaint = configfile.None, "manifold.dev/not-ready" })
	asked := func(q kubetest.Request) bool { return q.Path == "/api/v1/nodes/node1" }
	for end := time.Now().Add(time.Minute); !slices.ContainsFunc(r.api.Requests(), asked); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the node's taints were never read")
		}
	}
}
