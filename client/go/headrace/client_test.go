package headrace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	headracev1 "headrace.dev/go/headrace/v1"
)

var ctx = context.Background()

func TestAServerThatIsNotThereIsUnavailableBeforeLong(t *testing.T) {
	address, stop := (&server{}).serve(t, "127.0.0.1:0")
	stop()
	client := connect(t, address)
	begin := time.Now()
	err := getModel(ctx, client)
	if got := failed(t, err); got.Code != codes.Unavailable || got.TraceID == "" {
		t.Error(err)
	}
	if took := time.Since(begin); took < 500*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestTheClientConnectsAgainWhenTheServerComesBack(t *testing.T) {
	address, stop := (&server{}).serve(t, "127.0.0.1:0")
	client := connect(t, address)
	if err := getModel(ctx, client); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := getModel(ctx, client); failed(t, err).Code != codes.Unavailable {
		t.Fatal(err)
	}
	(&server{}).serve(t, address)
	begin := time.Now()
	for getModel(ctx, client) != nil {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("it does not connect again")
		}
	}
}

func TestDeadlines(t *testing.T) {
	var left time.Duration
	var limited bool
	scripted := &server{getModel: func(ctx context.Context, _ int) (*headracev1.GetModelResponse, error) {
		deadline, ok := ctx.Deadline()
		left, limited = time.Until(deadline), ok
		return &headracev1.GetModelResponse{}, nil
	}}
	client := scripted.connected(t, WithTimeout(100*time.Second))
	hour, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	for name, each := range map[string]struct {
		ctx    context.Context
		opts   []grpc.CallOption
		wanted time.Duration
	}{
		"the client's":               {ctx, nil, 100 * time.Second},
		"the context's":              {hour, nil, time.Hour},
		"the call's":                 {ctx, []grpc.CallOption{CallTimeout(10 * time.Second)}, 10 * time.Second},
		"the call's, in the context": {hour, []grpc.CallOption{CallTimeout(10 * time.Second)}, 10 * time.Second},
		"the context's, as earlier":  {hour, []grpc.CallOption{CallTimeout(9 * time.Hour)}, time.Hour},
		"none":                       {ctx, []grpc.CallOption{CallTimeout(0)}, 0},
	} {
		if err := getModel(each.ctx, client, each.opts...); err != nil {
			t.Fatal(err)
		}
		if limited != (each.wanted > 0) || limited && (left > each.wanted || left < each.wanted*9/10) {
			t.Errorf("%s: %v, %v", name, left, limited)
		}
	}
}

func TestADeadlineHoldsForAWholeStreamAndForRetries(t *testing.T) {
	scripted := &server{
		getModel: func(ctx context.Context, _ int) (*headracev1.GetModelResponse, error) {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "60000"))
			return nil, status.Error(codes.Unavailable, "not now")
		},
		complete: func(_ *headracev1.StreamCompletionRequest, stream grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
			_ = stream.Send(started())
			<-stream.Context().Done()
			return status.FromContextError(stream.Context().Err()).Err()
		},
	}
	client := scripted.connected(t, WithTimeout(300*time.Millisecond))
	begin := time.Now()
	if err := getModel(ctx, client); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
	if !errors.Is(err, context.DeadlineExceeded) || failed(t, err).TraceID == "" {
		t.Error(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestWhatIsSentWithACall(t *testing.T) {
	scripted := &server{complete: func(_ *headracev1.StreamCompletionRequest, stream grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
		return nil
	}}
	client := scripted.connected(t, WithToken("hr_x"))
	for model, wanted := range map[string][]string{
		"tiny:q4": {"tiny:q4"}, "größe": nil, "": nil, "a\nb": nil,
	} {
		_, _ = client.Complete(ctx, &headracev1.StreamCompletionRequest{Model: model})
		if got := scripted.header("headrace-model"); !slices.Equal(got, wanted) {
			t.Errorf("the header of the stream for %q is %q", model, got)
		}
	}
	if err := getModel(ctx, client); err != nil {
		t.Fatal(err)
	}
	for name, wanted := range map[string]string{
		"headrace-model": "tiny:q4", "authorization": "Bearer hr_x",
	} {
		if got := scripted.header(name); !slices.Equal(got, []string{wanted}) {
			t.Errorf("%s is %q", name, got)
		}
	}
	if agent := scripted.header("user-agent"); !strings.HasPrefix(agent[0], "headrace-go/"+Version) {
		t.Errorf("the user agent is %q", agent)
	}
}

func TestACallsOwnHeadersWin(t *testing.T) {
	scripted := &server{complete: func(*headracev1.StreamCompletionRequest, grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
		return nil
	}}
	client := scripted.connected(t, WithToken("hr_x"))
	for name, own := range map[string]string{
		"authorization":  "Bearer hr_other",
		"traceparent":    "00-" + otherID + "-2222222222222222-00",
		"headrace-model": "another",
	} {
		given := metadata.AppendToOutgoingContext(ctx, name, own)
		for kind, call := range map[string]func(){
			"unary": func() {
				if err := getModel(given, client); err != nil {
					t.Fatal(err)
				}
			},
			"stream": func() {
				_, _ = client.Complete(given, &headracev1.StreamCompletionRequest{Model: "tiny:q4"})
			},
		} {
			call()
			if got := scripted.header(name); !slices.Equal(got, []string{own}) {
				t.Errorf("%s of a %s call is %q", name, kind, got)
			}
		}
	}
}

func TestATokenIsInNoLog(t *testing.T) {
	client := connect(t, "127.0.0.1:50151", WithToken("hr_x"))
	holder := struct {
		client Client
		behind *Client
		any    any
	}{*client, client, client}
	var written strings.Builder
	for _, log := range []*slog.Logger{
		slog.New(slog.NewTextHandler(&written, nil)), slog.New(slog.NewJSONHandler(&written, nil)),
	} {
		log.Info("connected", "client", client, "value", *client, "holder", holder)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, value := range []any{client, *client, holder, &holder} {
			written.WriteString(fmt.Sprintf(verb+"\n", value))
		}
	}
	// In any of the forms that the verbs give a text.
	for _, form := range []string{"hr_x", fmt.Sprintf("%x", "hr_x"), fmt.Sprintf("%d", []byte("hr_x"))} {
		if strings.Contains(written.String(), form) {
			t.Errorf("%s is in\n%s", form, &written)
		}
	}
	if got := fmt.Sprint(client); got != "headrace.Client(127.0.0.1:50151)" ||
		!strings.Contains(written.String(), `"client":"`+got+`"`) {
		t.Errorf("it is %s in\n%s", got, &written)
	}
}

// spans begins a span for each call, of the trace that is given, as otelgrpc would. It notes what the
// span would be a child of.
type spans struct {
	given  trace.SpanContext
	parent trace.SpanContext
}

func (s *spans) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	s.parent = trace.SpanContextFromContext(ctx)
	return trace.ContextWithSpanContext(ctx, s.given)
}
func (*spans) HandleRPC(context.Context, stats.RPCStats)                         {}
func (*spans) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*spans) HandleConn(context.Context, stats.ConnStats)                       {}

const (
	oneID   = "0af7651916cd43dd8448eb211c80319c"
	otherID = "11111111111111111111111111111111"
)

func spanOf(id, state string) trace.SpanContext {
	traceID, _ := trace.TraceIDFromHex(id)
	parsed, _ := trace.ParseTraceState(state)
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: trace.SpanID{7}, TraceState: parsed,
	})
}

func TestEveryCallHasATrace(t *testing.T) {
	scripted := &server{complete: func(*headracev1.StreamCompletionRequest, grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
		return nil
	}}
	client := scripted.connected(t)
	header := "00-" + otherID + "-2222222222222222-00"
	for name, each := range map[string]struct {
		ctx            context.Context
		id, sent, flag string
		state          []string
	}{
		"the current span's": {
			trace.ContextWithSpanContext(ctx, spanOf(oneID, "vendor=1")), oneID,
			"00-" + oneID + "-0700000000000000-00", "00", []string{"vendor=1"},
		},
		"the caller's header": {
			metadata.AppendToOutgoingContext(ctx, "traceparent", header), otherID, header, "00", nil,
		},
		"one of its own": {ctx, "", "", "01", nil},
	} {
		for kind, call := range map[string]func(id *string){
			"unary": func(id *string) {
				if err := getModel(each.ctx, client, TraceID(id)); err != nil {
					t.Fatal(err)
				}
			},
			"stream": func(id *string) {
				_, err := client.Complete(each.ctx, &headracev1.StreamCompletionRequest{}, TraceID(id))
				if got := failed(t, err).TraceID; got != *id {
					t.Errorf("%s: the error's is %q, not %q", name, got, *id)
				}
			},
		} {
			var got string
			call(&got)
			sent := scripted.header("traceparent")
			if len(sent) != 1 || len(sent[0]) != 55 || !strings.HasPrefix(sent[0], "00-"+got+"-") ||
				!strings.HasSuffix(sent[0], "-"+each.flag) ||
				each.id != "" && (got != each.id || sent[0] != each.sent) {
				t.Errorf("%s, %s: %q of the trace %q", name, kind, sent, got)
			}
			if state := scripted.header("tracestate"); !slices.Equal(state, each.state) {
				t.Errorf("%s, %s: the state is %q", name, kind, state)
			}
		}
	}
	var first, second string
	_ = getModel(ctx, client, TraceID(&first))
	_ = getModel(ctx, client, TraceID(&second))
	if first == second {
		t.Error("two calls have one trace")
	}
}

func TestASpanThatAHandlerBeginsIsTheCallsTrace(t *testing.T) {
	scripted := &server{}
	handler := &spans{given: spanOf(otherID, "")}
	client := scripted.connected(t, WithDialOptions(grpc.WithStatsHandler(handler)))
	for _, parent := range []trace.SpanContext{{}, spanOf(oneID, "")} {
		var got string
		err := getModel(trace.ContextWithSpanContext(ctx, parent), client, TraceID(&got))
		sent := scripted.header("traceparent")
		if err != nil || got != otherID || len(sent) != 1 || !strings.HasPrefix(sent[0], "00-"+otherID+"-") {
			t.Errorf("%q of the trace %q, %v", sent, got, err)
		}
		// Where there is no parent none is made up: a sampler would follow it.
		if !handler.parent.Equal(parent) {
			t.Errorf("the parent is %v", handler.parent)
		}
	}
}

func TestMessagesOfSomeMebibytesCome(t *testing.T) {
	size := 0
	scripted := &server{getModel: func(context.Context, int) (*headracev1.GetModelResponse, error) {
		model := &headracev1.Model{License: strings.Repeat("x", size)}
		return &headracev1.GetModelResponse{Model: model}, nil
	}}
	client := scripted.connected(t)
	size = 31 << 20
	if err := getModel(ctx, client); err != nil {
		t.Error(err)
	}
	size = 33 << 20
	if err := getModel(ctx, client); failed(t, err).Code != codes.ResourceExhausted {
		t.Error(err)
	}
}

func TestARequestThatProtobufCannotCarryIsInvalid(t *testing.T) {
	scripted := &server{}
	client := scripted.connected(t)
	request := &headracev1.GetModelRequest{Model: "\xff"}
	_, unary := headracev1.NewModelServiceClient(client).GetModel(ctx, request)
	_, streamed := client.Complete(ctx, &headracev1.StreamCompletionRequest{Model: "\xff"})
	for name, err := range map[string]error{"unary": unary, "stream": streamed} {
		if !errors.Is(err, ReasonInvalidRequest) || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAStreamWhoseRequestCannotBeSentHasEnded(t *testing.T) {
	client := (&server{}).connected(t, WithTimeout(time.Hour))
	desc := &grpc.StreamDesc{ServerStreams: true}
	made, err := client.NewStream(ctx, desc, headracev1.CompletionService_StreamCompletion_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	bad := &headracev1.StreamCompletionRequest{Model: "\xff"}
	check := func(when string, err error) {
		if !errors.Is(err, ReasonInvalidRequest) || failed(t, err).TraceID == "" {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("sent", made.SendMsg(bad))
	// The timer of the deadline has been stopped, also where nobody receives.
	if err := made.(*stream).ctx.Err(); err != context.Canceled {
		t.Errorf("its context: %v", err)
	}
	check("received", made.RecvMsg(&response{}))
	check("sent again", made.SendMsg(bad))
}

func TestAStreamOfAStub(t *testing.T) {
	running := make(chan struct{}, 1)
	scripted := &server{complete: func(_ *headracev1.StreamCompletionRequest, stream grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
		for range 3 {
			if err := stream.Send(started()); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		running <- struct{}{}
		return nil
	}}
	client := scripted.connected(t)
	cancellable, cancel := context.WithCancel(ctx)
	defer cancel()
	stub := headracev1.NewCompletionServiceClient(client)
	stream, err := stub.StreamCompletion(cancellable, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 2 { // Also the second time.
		if _, err := stream.Recv(); !errors.Is(err, context.Canceled) || failed(t, err).TraceID == "" {
			t.Errorf("after it has been cancelled: %v", err)
		}
	}
	select {
	case <-running:
	case <-time.After(10 * time.Second):
		t.Error("the server does not hear of it")
	}
}

func TestAStreamThatHasEndedStaysSo(t *testing.T) {
	scripted := &server{complete: func(*headracev1.StreamCompletionRequest, grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
		return nil
	}}
	stub := headracev1.NewCompletionServiceClient(scripted.connected(t))
	stream, err := stub.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
}
