// Package traces sends the plugin's measurements of its calls to an OpenTelemetry
// collector: a trace for each call, with a span for each step.
//
// The plugin knows nothing of traces. It measures anyway, and passes the times on in
// its report. The ID of a trace is that of the call, which is in every log line of the
// call.
package traces

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/manifold-cni/manifold/internal/plan"
)

const (
	// maxQueue bounds the spans that wait to be sent. Further ones are lost, because no
	// pod waits for a collector.
	maxQueue = 1024
	sendTime = 5 * time.Second
)

// Exporter sends traces in the background. The methods of a nil *Exporter do nothing.
type Exporter struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// New returns an exporter to the collector at a URL, in OTLP over HTTP, for example
// "http://collector:4318". It connects only when there is something to send.
func New(ctx context.Context, endpoint, release, node string) (*Exporter, error) {
	u, err := Endpoint(endpoint)
	if err != nil {
		return nil, fmt.Errorf("export traces to %q: %w", endpoint, err)
	}
	client, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(sendTime))
	if err != nil {
		return nil, fmt.Errorf("export traces to %q: %w", endpoint, err)
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(client, sdktrace.WithMaxQueueSize(maxQueue), sdktrace.WithExportTimeout(sendTime)),
		sdktrace.WithIDGenerator(ids{}), sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "manifold"), attribute.String("service.version", release), attribute.String("k8s.node.name", node))),
	)
	return &Exporter{provider: p, tracer: p.Tracer("github.com/manifold-cni/manifold")}, nil
}

// Endpoint returns the URL that traces are sent to, for a collector's URL as
// configured.
func Endpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("it is no http or https URL")
	}
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u, nil
}

// Close sends the waiting spans, and stops the exporter.
func (e *Exporter) Close() error {
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), sendTime)
	defer cancel()
	return e.provider.Shutdown(ctx)
}

// Operation sends one call of the plugin, which ended now. p is its plan, nil when
// there is none.
func (e *Exporter) Operation(op *plan.Operation, p *plan.Plan) {
	if e == nil {
		return
	}
	ended := time.Now()
	began := ended.Add(-op.Took.Duration())
	ctx := context.WithValue(context.Background(), requestKey{}, op.Request)
	ctx, call := e.tracer.Start(ctx, "CNI "+op.Verb, trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(aboutPod(p)...))
	for _, s := range op.Steps {
		from := began.Add(s.Began.Duration())
		_, span := e.tracer.Start(ctx, s.Name, trace.WithTimestamp(from), trace.WithAttributes(aboutStep(&s, p)...))
		if s.Failed {
			span.SetStatus(codes.Error, "")
		}
		span.End(trace.WithTimestamp(from.Add(s.Took.Duration())))
	}
	if op.Failed {
		call.SetStatus(codes.Error, op.Kind.String())
	}
	call.End(trace.WithTimestamp(ended))
}

func aboutPod(p *plan.Plan) []attribute.KeyValue {
	if p == nil {
		return nil
	}
	return []attribute.KeyValue{
		attribute.String("k8s.namespace.name", p.Pod.Namespace), attribute.String("k8s.pod.name", p.Pod.Name),
		attribute.String("k8s.pod.uid", p.Pod.UID), attribute.String("manifold.sandbox", p.ContainerID),
	}
}

// aboutStep says which plugin ran for which attachment.
func aboutStep(s *plan.Step, p *plan.Plan) []attribute.KeyValue {
	var out []attribute.KeyValue
	if s.Plugin != "" {
		out = append(out, attribute.String("manifold.plugin", s.Plugin))
	}
	ofOne := slices.Contains([]string{plan.StepVersion, plan.StepDelegate, plan.StepVerify, plan.StepUndo}, s.Name)
	if p == nil || !ofOne || s.Attachment < 0 || s.Attachment >= len(p.Attachments) {
		return out
	}
	a := &p.Attachments[s.Attachment]
	out = append(out, attribute.String("manifold.network", a.Name), attribute.String("manifold.interface", a.IfName))
	if a.Device != nil {
		out = append(out, attribute.String("manifold.resource", a.Device.Resource), attribute.String("manifold.device", a.Device.ID))
	}
	return out
}

// requestKey is the context key of the call's ID.
type requestKey struct{}

// ids gives a trace the ID of its call, or a random one if the call has no valid ID.
type ids struct{}

// NewIDs implements sdktrace.IDGenerator.
func (i ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	request, _ := ctx.Value(requestKey{}).(string)
	id, err := trace.TraceIDFromHex(request)
	for err != nil {
		id, err = trace.TraceIDFromHex(fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()))
	}
	return id, i.NewSpanID(ctx, id)
}

// NewSpanID implements sdktrace.IDGenerator.
func (ids) NewSpanID(context.Context, trace.TraceID) trace.SpanID {
	for {
		if id, err := trace.SpanIDFromHex(fmt.Sprintf("%016x", rand.Uint64())); err == nil {
			return id
		}
	}
}
