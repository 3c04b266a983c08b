package headrace

import (
	"context"
	"crypto/rand"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
)

const traceHeader = "traceparent"

type traceKey struct{}

// callTrace is the trace of one call.
type callTrace struct {
	id    atomic.Value      // a string; that of the last attempt
	spare trace.SpanContext // for where there is none, so that the services' logs can be searched
}

// traced gives the context of a call a trace.
func traced(ctx context.Context) (context.Context, *callTrace) {
	made := &callTrace{spare: newTrace()}
	made.settle(ctx)
	return context.WithValue(ctx, traceKey{}, made), made
}

// settle finds the call's trace: a header that somebody has set holds, else the current span.
func (c *callTrace) settle(ctx context.Context) (span trace.SpanContext, sent bool) {
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	if given := outgoing.Get(traceHeader); len(given) > 0 {
		_, rest, _ := strings.Cut(given[0], "-")
		id, _, _ := strings.Cut(rest, "-")
		c.id.Store(id)
		return span, true
	}
	if span = trace.SpanContextFromContext(ctx); !span.IsValid() {
		span = c.spare
	}
	c.id.Store(span.TraceID().String())
	return span, false
}

// traceID gives the id as it is known so far.
func (c *callTrace) traceID() string {
	id, _ := c.id.Load().(string)
	return id
}

// tell gives the id to those of the call's options that ask for it.
func (c *callTrace) tell(opts []grpc.CallOption) {
	for _, opt := range opts {
		if wanted, ok := opt.(traceID); ok {
			*wanted.id = c.traceID()
		}
	}
}

// traceHandler sends the trace. It is the last of the handlers: one before it may have begun a span,
// by its own sampler.
type traceHandler struct{}

func (traceHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	call, ok := ctx.Value(traceKey{}).(*callTrace)
	if !ok {
		return ctx
	}
	span, sent := call.settle(ctx)
	if sent {
		return ctx
	}
	fields := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(ctx, span), fields)
	for name, value := range fields {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	return ctx
}

func (traceHandler) HandleRPC(context.Context, stats.RPCStats) {}

func (traceHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (traceHandler) HandleConn(context.Context, stats.ConnStats) {}

// newTrace is sampled: the services may record it; whether they do is their setting.
func newTrace() trace.SpanContext {
	var id trace.TraceID
	var span trace.SpanID
	_, _ = rand.Read(id[:]) // never fails
	_, _ = rand.Read(span[:])
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.FlagsSampled,
	})
}
