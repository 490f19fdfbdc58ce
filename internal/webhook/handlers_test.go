package webhook

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// source has the definition shop/b and no other, or fails with err.
type source struct {
	err   error
	asked int // calls that would have gone to the API server
}

// Local implements definitions. Nothing is in memory.
func (s *source) Local(_ context.Context, namespace, name string) (*netattach.Definition, error) {
	return nil, fmt.Errorf("%s/%s: %w", namespace, name, kube.ErrNotFound)
}

// Definition implements definitions.
func (s *source) Definition(_ context.Context, namespace, name string) (*netattach.Definition, error) {
	s.asked++
	if s.err != nil {
		return nil, fmt.Errorf("%s/%s: %w", namespace, name, s.err)
	}
	if namespace == "shop" && name == "b" { // needs a device
		def := &netattach.Definition{Spec: netattach.DefinitionSpec{Config: `{"type":"host-device"}`}}
		def.Namespace, def.Name, def.Annotations = namespace, name, map[string]string{netattach.ResourceNameAnnotation: "x.example/b"}
		return def, nil
	}
	return nil, fmt.Errorf("%s/%s: %w", namespace, name, kube.ErrNotFound)
}

// spec returns a pod in JSON that selects networks and has rest in its spec.
func spec(networks, rest string) string {
	return fmt.Sprintf(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":%q}},"spec":{%s}}`, networks, rest)
}

func newReviewer(t *testing.T, s *source) *reviewer {
	t.Helper()
	r, err := rules.New(nil, notThere)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return &reviewer{rules: r, definitions: s, metrics: m}
}

// review returns the review of an object in namespace shop.
func review(operation admissionv1.Operation, raw, old string) admission.Request {
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Operation: operation, Namespace: "shop", Name: "x", Object: runtime.RawExtension{Raw: []byte(raw)}, OldObject: runtime.RawExtension{Raw: []byte(old)},
	}}
}

func TestReviewsOfPods(t *testing.T) {
	const one = `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"1"}}}]`
	for name, tc := range map[string]struct {
		raw      string
		err      error
		mutated  int // patch operations, -1 for a refusal
		code     int32
		says     string
		warnings int
	}{
		"good":             {spec("b", one), nil, 0, http.StatusOK, "", 0},
		"mutated":          {spec("b,b", one), nil, 2, http.StatusUnprocessableEntity, "spec.containers: ", 0},
		"wrong annotation": {spec("b@,", one), nil, 0, http.StatusUnprocessableEntity, "metadata.annotations[k8s.v1.cni.cncf.io/networks]: ", 0},
		"absent":           {spec("nobody", one), nil, 0, http.StatusOK, "", 1},
		"host network":     {spec("b,b", `"hostNetwork":true,`+one), nil, 0, http.StatusOK, "", 1},
		"cannot tell":      {spec("b", one), kube.ErrUnavailable, -1, http.StatusServiceUnavailable, "create the pod again", 0},
		"too large":        {spec("b", one), kube.ErrInvalid, -1, http.StatusUnprocessableEntity, "correct the definition", 0},
		"no pod":           {`[]`, nil, -1, http.StatusBadRequest, "read pod", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReviewer(t, &source{err: tc.err})
			req := review(admissionv1.Create, tc.raw, "")
			if resp := r.mutatePod(context.Background(), req); resp.Allowed != (tc.mutated >= 0) || resp.Allowed && len(resp.Patches) != tc.mutated {
				t.Errorf("mutated: allowed %t, %v", resp.Allowed, resp.Patches)
			}
			resp := r.validatePod(context.Background(), req)
			if resp.Result.Code != tc.code || !strings.Contains(resp.Result.Message, tc.says) || len(resp.Warnings) != tc.warnings {
				t.Errorf("validated: %+v, warnings %q", resp.Result, resp.Warnings)
			}
			if d := resp.Result.Details; resp.Result.Reason == "Invalid" && (d == nil || len(d.Causes) == 0 || d.Causes[0].Field == "") {
				t.Errorf("no causes: %+v", d)
			}
		})
	}
}

// TestAPodCostsLittle proves that a pod which selects 200 absent definitions makes at
// most maxAsked calls to the API server.
func TestAPodCostsLittle(t *testing.T) {
	names := make([]string, 200)
	for i := range names {
		names[i] = fmt.Sprintf("nobody-%d", i)
	}
	s := &source{}
	resp := newReviewer(t, s).validatePod(context.Background(), review(admissionv1.Create, spec(strings.Join(names, ","), `"containers":[{"name":"m"}]`), ""))
	if !resp.Allowed || s.asked != maxAsked || len(resp.Warnings) != maxWarnings {
		t.Errorf("allowed %t, asked %d times, %d warnings", resp.Allowed, s.asked, len(resp.Warnings))
	}
}

func TestReviewsOfDefinitions(t *testing.T) {
	const bad, worse = `{"metadata":{"name":"x"},"spec":{"config":"{"}}`, `{"metadata":{"name":"x","labels":{"a":"b"}},"spec":{"config":"{"}}`
	r := newReviewer(t, &source{})
	for name, tc := range map[string]struct {
		req     admission.Request
		allowed bool
	}{
		"good":              {review(admissionv1.Create, `{"metadata":{"name":"x"},"spec":{"config":"{\"type\":\"bridge\"}"}}`, ""), true},
		"bad":               {review(admissionv1.Create, bad, ""), false},
		"no object":         {review(admissionv1.Create, `7`, ""), false},
		"was bad before":    {review(admissionv1.Update, worse, bad), true},
		"bad from now on":   {review(admissionv1.Update, bad, `{"metadata":{"name":"x"},"spec":{"config":"{\"type\":\"bridge\"}"}}`), false},
		"another bad one":   {review(admissionv1.Update, strings.Replace(bad, `"{"`, `"{{"`, 1), bad), false},
		"resource is wrong": {review(admissionv1.Update, strings.Replace(bad, `"name"`, `"annotations":{"k8s.v1.cni.cncf.io/resourceName":"x"},"name"`, 1), bad), false},
	} {
		if resp := r.validateDefinition(context.Background(), tc.req); resp.Allowed != tc.allowed {
			t.Errorf("%s: allowed %t: %+v", name, resp.Allowed, resp.Result)
		}
	}
	for i := range 100 {
		req := review(admissionv1.Create, bad, "")
		req.Kind = metav1.GroupVersionKind{Kind: fmt.Sprintf("Invented%d", i)}
		r.validateDefinition(context.Background(), req)
	}
	series := make(chan prometheus.Metric, 200)
	if r.metrics.findings.Collect(series); len(series) != 1 {
		t.Errorf("%d series, of kinds that somebody invented", len(series))
	}
	long := clip(append(make([]string, 20), strings.Repeat("é", 200))[10:])
	if len(long) != maxWarnings {
		t.Errorf("%d warnings", len(long))
	}
	if one := clip([]string{strings.Repeat("é", 200)}); len(one[0]) > maxWarning {
		t.Errorf("a warning of %d bytes", len(one[0]))
	}
}
