package traces

import (
	"context"
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

const request = "0123456789abcdef0123456789abcdef"

// sent sends operations to a collector and returns the spans that it received, by name.
func sent(t *testing.T, p *plan.Plan, ops ...*plan.Operation) map[string]*tracev1.Span {
	t.Helper()
	got := make(chan []byte, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- body
	}))
	defer srv.Close()
	e, err := New(context.Background(), srv.URL, "v1", "node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		e.Operation(op, p)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var in collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(<-got, &in); err != nil {
		t.Fatal(err)
	}
	out := map[string]*tracev1.Span{}
	for _, s := range in.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans() {
		out[s.GetName()] = s
	}
	return out
}

func attributes(s *tracev1.Span) map[string]string {
	out := map[string]string{}
	for _, a := range s.GetAttributes() {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

func took(s *tracev1.Span) time.Duration {
	return time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano())
}

// ofACall returns the spans of a failed ADD with a device.
func ofACall(t *testing.T) map[string]*tracev1.Span {
	t.Helper()
	p := &plan.Plan{
		Pod: plan.Pod{Namespace: "shop", Name: "web", UID: "u"}, ContainerID: "c",
		Attachments: []plan.Attachment{{Name: "cl", IfName: "eth0"}, {Name: "shop/fast", IfName: "net1", Device: &plan.Device{Resource: "r/x", ID: "0000:21:10.4"}}},
	}
	spans := sent(t, p, &plan.Operation{Request: request, Verb: "ADD", Failed: true, Kind: cnierr.VerifyFailed, Took: 9000, Steps: []plan.Step{
		{Name: plan.StepPlan, Began: 100, Took: 900}, {Name: plan.StepDelegate, Plugin: "host-device", Attachment: 1, Began: 1000, Took: 5000},
		{Name: plan.StepVerify, Attachment: 1, Failed: true, Began: 6000, Took: 200}, {Name: plan.StepUndo, Attachment: 7, Began: 7000, Took: 100},
	}})
	if len(spans) != 5 || spans["CNI ADD"] == nil || spans["delegate"] == nil {
		t.Fatalf("%v", spans)
	}
	return spans
}

// A call is one trace under its own ID. Its steps are spans in the trace, with the
// times that the plugin measured.
func TestTraceOfACall(t *testing.T) {
	spans := ofACall(t)
	call, delegate := spans["CNI ADD"], spans["delegate"]
	for name, s := range spans {
		if hex.EncodeToString(s.GetTraceId()) != request {
			t.Errorf("%s is in trace %x", name, s.GetTraceId())
		}
		if s != call && string(s.GetParentSpanId()) != string(call.GetSpanId()) {
			t.Errorf("%s is not in the call's span", name)
		}
	}
	if took(call) != 9*time.Millisecond || took(delegate) != 5*time.Millisecond || delegate.GetStartTimeUnixNano()-call.GetStartTimeUnixNano() != uint64(time.Millisecond) {
		t.Errorf("%v %v", call, delegate)
	}
}

// Spans say which plugin and attachment they are about, and which step failed.
func TestSpansSayWhatTheyWereFor(t *testing.T) {
	spans := ofACall(t)
	for span, want := range map[string]map[string]string{
		"CNI ADD":  {"k8s.namespace.name": "shop", "k8s.pod.name": "web", "k8s.pod.uid": "u", "manifold.sandbox": "c"},
		"delegate": {"manifold.plugin": "host-device", "manifold.network": "shop/fast", "manifold.interface": "net1", "manifold.resource": "r/x", "manifold.device": "0000:21:10.4"},
		"plan":     {}, "undo": {},
	} {
		if have := attributes(spans[span]); !maps.Equal(have, want) {
			t.Errorf("%s: %v, want %v", span, have, want)
		}
	}
	for span, message := range map[string]string{"CNI ADD": "verify-failed", "verify": ""} {
		if s := spans[span].GetStatus(); s.GetCode() != tracev1.Status_STATUS_CODE_ERROR || s.GetMessage() != message {
			t.Errorf("%s: %v", span, s)
		}
	}
	if spans["plan"].GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
		t.Error("a step that succeeded is marked")
	}
}

// A call of an older plugin has no ID, and a refused call has no plan.
func TestTraceOfLittle(t *testing.T) {
	s := sent(t, nil, &plan.Operation{Verb: "DEL", Took: 5})["CNI DEL"]
	if s == nil || len(s.GetTraceId()) != 16 || len(s.GetAttributes()) != 0 {
		t.Errorf("%v", s)
	}
	var none *Exporter
	none.Operation(&plan.Operation{}, nil)
	if err := none.Close(); err != nil {
		t.Error(err)
	}
	if _, err := New(context.Background(), "://", "v1", "n"); err == nil {
		t.Error("accepted a text that is not a URL")
	}
}
