package headrace

import (
	"context"
	"crypto/rand"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

const traceHeader = "traceparent"

// traced gives the context a trace, where it has none, and the call's metadata the trace's header.
//
// A header that the caller has set holds; else the current span does. Else a trace is made, so that
// the logs of the services can be searched for the call: it becomes the context's remote parent,
// which spans that interceptors or stats handlers begin are children of.
func traced(ctx context.Context) (context.Context, string) {
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	if given := outgoing.Get(traceHeader); len(given) > 0 {
		_, rest, _ := strings.Cut(given[0], "-")
		id, _, _ := strings.Cut(rest, "-")
		return ctx, id
	}
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		span = newTrace()
		ctx = trace.ContextWithRemoteSpanContext(ctx, span)
	}
	fields := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, fields)
	for name, value := range fields {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	return ctx, span.TraceID().String()
}

// newTrace is sampled: the services may record it; whether they do is their setting.
func newTrace() trace.SpanContext {
	var id trace.TraceID
	var span trace.SpanID
	_, _ = rand.Read(id[:]) // never fails
	_, _ = rand.Read(span[:])
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.FlagsSampled, Remote: true,
	})
}
