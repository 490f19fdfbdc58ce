package inspect

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/internal/nodeview"
)

// A user without the rights to ask agents is told which role is missing, not that the
// agents are broken.
func TestDoctorWithoutRights(t *testing.T) {
	agent := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "manifold-x", Namespace: "net"},
		Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: "manifold", Containers: []corev1.Container{
			{Name: "agent", Ports: []corev1.ContainerPort{{Name: "view", ContainerPort: 9611}}},
		}},
	}
	for right, mayToken := range map[string]bool{"serviceaccounts/token": false, "pods/proxy": true} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			var answer any = &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{agent}}
			switch {
			case strings.HasSuffix(r.URL.Path, "/token") && mayToken:
				answer = map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "status": map[string]any{"token": "t", "expirationTimestamp": nil}}
				w.WriteHeader(http.StatusCreated)
			case r.URL.Path != "/api/v1/namespaces/net/pods":
				answer = &metav1.Status{
					TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: http.StatusForbidden,
					Reason: metav1.StatusReasonForbidden, Message: right + ": mallory cannot", Details: &metav1.StatusDetails{},
				}
				w.WriteHeader(http.StatusForbidden)
			}
			if err := json.NewEncoder(w).Encode(answer); err != nil {
				t.Error(err)
			}
		}))
		defer srv.Close()
		r, err := NewRemote(&rest.Config{Host: srv.URL}, "net")
		if err != nil {
			t.Fatal(err)
		}
		found, err := r.Doctor(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := found[0].Checks[0]
		if c.State != nodeview.CheckFailed || !strings.Contains(c.Text, "mallory cannot") || !strings.Contains(c.Fix, "Role manifold-view of namespace net") {
			t.Errorf("%s: %+v", right, c)
		}
	}
}
