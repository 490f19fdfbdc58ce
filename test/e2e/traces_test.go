package e2e

import (
	"cmp"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// spans are the spans that a collector has received.
type spans struct {
	mu  sync.Mutex
	all []*tracev1.Span
}

// traced starts a collector and configures the node's agent to send its traces
// there.
func (n *node) traced() *spans {
	n.t.Helper()
	s := &spans{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in collector.ExportTraceServiceRequest
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &in)
		}
		if err != nil {
			n.t.Errorf("%s: %v", r.URL, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, resource := range in.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				s.all = append(s.all, scope.GetSpans()...)
			}
		}
	}))
	n.t.Cleanup(srv.Close)
	keys := n.agentKeys()
	keys["traces"] = srv.URL
	n.agentConfig(keys)
	return s
}

// of returns the spans of the trace that a log line names.
func (s *spans) of(line map[string]any) (out []*tracev1.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.all {
		if hex.EncodeToString(span.GetTraceId()) == line["request"] {
			out = append(out, span)
		}
	}
	return out
}

// TestTracesOfCalls proves that the plugin's measurements of a call reach the
// collector through the agent as one trace, with the ID that the logs have: the
// call and, within its time, its steps.
func TestTracesOfCalls(t *testing.T) {
	n := newNode(t, nil)
	got := n.traced()
	n.serve()
	n.withConf(map[string]any{"logFile": n.path("plugin.log"), "logLevel": "debug", "logFormat": "json"})
	n.define("plain", "", `{"cniVersion":"1.0.0","type":"scripted"}`)
	p, refused := n.addPod("pod", "plain"), n.addPod("refused", "nowhere")
	n.succeed("ADD", p)
	n.refuse("ADD", refused, 102)
	n.succeed("DEL", p)
	log := n.lines("plugin.log")
	done, failed := said(log, "done", p), said(log, "failed", refused)
	if len(done) != 2 || len(failed) != 1 {
		t.Fatalf("the log has %v and %v", done, failed)
	}
	for _, tc := range []struct {
		line      map[string]any
		call      string
		delegates []string
		code      tracev1.Status_StatusCode
	}{
		{done[0], "CNI ADD", []string{"bridge", "scripted"}, tracev1.Status_STATUS_CODE_UNSET},
		{failed[0], "CNI ADD", nil, tracev1.Status_STATUS_CODE_ERROR},
		{done[1], "CNI DEL", []string{"scripted", "bridge"}, tracev1.Status_STATUS_CODE_UNSET},
	} {
		var trace []*tracev1.Span
		var call *tracev1.Span
		n.eventually("a trace of "+tc.call, func() bool { // the call's span ends last and is sent last
			trace = got.of(tc.line)
			i := slices.IndexFunc(trace, func(s *tracev1.Span) bool { return s.GetName() == tc.call })
			if i >= 0 {
				call = trace[i]
			}
			return i >= 0
		})
		if code := call.GetStatus().GetCode(); code != tc.code {
			t.Errorf("%s ends with %v", tc.call, call.GetStatus())
		}
		if ran := within(t, call, trace); !slices.Equal(ran, tc.delegates) {
			t.Errorf("%s ran %q, want %q", tc.call, ran, tc.delegates)
		}
	}
}

// within fails unless all other spans of a trace are steps of the call and within
// its time. It returns the plugins that ran, in order.
func within(t *testing.T, call *tracev1.Span, trace []*tracev1.Span) (ran []string) {
	t.Helper()
	slices.SortFunc(trace, func(a, b *tracev1.Span) int {
		return cmp.Compare(a.GetStartTimeUnixNano(), b.GetStartTimeUnixNano())
	})
	for _, s := range trace {
		if s == call {
			continue
		}
		if string(s.GetParentSpanId()) != string(call.GetSpanId()) || s.GetStartTimeUnixNano() < call.GetStartTimeUnixNano() || s.GetEndTimeUnixNano() > call.GetEndTimeUnixNano() {
			t.Errorf("%v is not a step of %v", s, call)
		}
		for _, a := range s.GetAttributes() {
			if s.GetName() == "delegate" && a.GetKey() == "manifold.plugin" {
				ran = append(ran, a.GetValue().GetStringValue())
			}
		}
	}
	return ran
}
