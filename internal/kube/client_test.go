package kube

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

func TestConfig(t *testing.T) {
	srv, _ := startServer(t)
	path, err := srv.Kubeconfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config(path)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != srv.URL() || cfg.QPS != defaultQPS || cfg.Burst != defaultBurst || cfg.Timeout != defaultTimeout {
		t.Errorf("host %s, QPS %v, burst %d, timeout %v", cfg.Host, cfg.QPS, cfg.Burst, cfg.Timeout)
	}
}

// TestBurst: the client's own rate limit does not delay a node that comes back with 500
// pods, with a PATCH and an Event for each.
func TestBurst(t *testing.T) {
	srv, _ := startServer(t)
	path, err := srv.Kubeconfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config(path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range 2 * 500 {
		if !client.core.GetRateLimiter().TryAccept() {
			t.Fatalf("request %d would wait", i)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Config(""); !errors.Is(err, rest.ErrNotInCluster) {
		t.Errorf("outside of a cluster: %v", err)
	}
	if _, err := Config(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Config(broken)
	wantError(t, err, nil, broken)
	if err == nil {
		t.Error("a broken file is accepted")
	}
}

func TestNewClient(t *testing.T) {
	cfg := &rest.Config{Host: "http://127.0.0.1:1", Timeout: time.Minute, QPS: 1}
	client, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if client.timeout != time.Minute || client.http.Timeout != 0 {
		t.Errorf("timeout of requests %v, of watches %v", client.timeout, client.http.Timeout)
	}
	if cfg.Timeout != time.Minute || cfg.Dial != nil || cfg.RateLimiter != nil {
		t.Error("the caller's configuration was changed")
	}
	if a, b := client.core.GetRateLimiter(), client.definitions.GetRateLimiter(); a == nil || a != b {
		t.Error("the clients have rate limiters of their own")
	}
	if _, err := NewClient(&rest.Config{Host: "http://[::1"}); err == nil {
		t.Error("a malformed address is accepted")
	}
}

func TestObjectMissing(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"object", apierrors.NewNotFound(pods, "web"), true},
		{"no name", apierrors.NewNotFound(pods, ""), false},
		{"path", apierrors.NewGenericServerResponse(404, "get", pods, "web", "404 page not found", 0, true), false},
		{"other", apierrors.NewForbidden(pods, "web", nil), false},
		{"not from the server", errors.New("web not found"), false},
	}
	for _, tt := range tests {
		if got := objectMissing(tt.err); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
