package headrace

import (
	"context"
	"fmt"
	"path"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	headracev1 "headrace.dev/go/headrace/v1"
)

func TestUnaryCallsAreMadeAgainWhileTheServerIsUnavailable(t *testing.T) {
	for name, each := range map[string]struct {
		failures int    // before it answers
		pushback string // of the server; "": none
		attempts int
		code     codes.Code
		least    time.Duration
		most     time.Duration
	}{
		"three times":          {3, "", 4, codes.OK, 560 * time.Millisecond, 5 * time.Second},
		"not a fourth time":    {9, "", 4, codes.Unavailable, 560 * time.Millisecond, 5 * time.Second},
		"when the server says": {1, "400", 2, codes.OK, 400 * time.Millisecond, 5 * time.Second},
		"not if it says so":    {1, "-1", 1, codes.Unavailable, 0, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scripted := &server{getModel: func(ctx context.Context, attempt int) (*headracev1.GetModelResponse, error) {
				if attempt > each.failures {
					return &headracev1.GetModelResponse{}, nil
				}
				if each.pushback != "" {
					_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", each.pushback))
				}
				return nil, status.Error(codes.Unavailable, "not now")
			}}
			client := scripted.connected(t)
			begin := time.Now()
			err := getModel(ctx, client)
			took := time.Since(begin)
			if status.Code(err) != each.code || scripted.attempts() != each.attempts {
				t.Errorf("%v after %d attempts", err, scripted.attempts())
			}
			if err != nil && failed(t, err).Message != "not now" {
				t.Errorf("the message is %q", failed(t, err).Message)
			}
			if took < each.least || took > each.most {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestNothingElseIsMadeAgain(t *testing.T) {
	scripted := &server{
		getModel: func(context.Context, int) (*headracev1.GetModelResponse, error) {
			return nil, status.Error(codes.ResourceExhausted, "full")
		},
		complete: func(*headracev1.StreamCompletionRequest, grpc.ServerStreamingServer[headracev1.StreamCompletionResponse]) error {
			return status.Error(codes.Unavailable, "not now")
		},
	}
	client := scripted.connected(t)
	if err := getModel(ctx, client); failed(t, err).Code != codes.ResourceExhausted {
		t.Error(err)
	}
	_, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
	if failed(t, err).Code != codes.Unavailable || scripted.attempts() != 2 {
		t.Errorf("%v after %d attempts of two calls", err, scripted.attempts())
	}
}

// refusing is a server that refuses methods before it has their requests, all of them as UNAVAILABLE
// unless it is told which and how, and counts how often each is asked for.
type refusing struct {
	answers map[string]error // by method; none: all are UNAVAILABLE

	mutex sync.Mutex
	asked map[string]int
}

func (r *refusing) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.asked[info.FullMethodName]++
	if r.answers != nil {
		return ctx, r.answers[info.FullMethodName]
	}
	return ctx, status.Error(codes.Unavailable, "not now")
}

func (r *refusing) attempts(method string) int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.asked[method]
}

func TestStreamsAndWhatChangesTheStoreAreSentOnce(t *testing.T) {
	once := map[string]bool{
		"/headrace.v1.ModelService/CollectGarbage": true,
		"/headrace.v1.ModelService/CopyModel":      true,
		"/headrace.v1.ModelService/DeleteModel":    true,
	}
	methods := []string{"/grpc.health.v1.Health/Check"}
	protoregistry.GlobalFiles.RangeFilesByPackage("headrace.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				path := fmt.Sprintf("/%s/%s", service.FullName(), method.Name())
				methods = append(methods, path)
				if method.IsStreamingServer() {
					once[path] = true
				}
			}
		}
		return true
	})
	refuses := &refusing{asked: map[string]int{}}
	address, _ := (&server{}).serve(t, "127.0.0.1:0", grpc.InTapHandle(refuses.tap))
	client := connect(t, address)
	var calls sync.WaitGroup
	for _, method := range methods {
		calls.Go(func() {
			err := client.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
			wanted := 4
			if once[method] {
				wanted = 1
			}
			if got := refuses.attempts(method); status.Code(err) != codes.Unavailable || got != wanted {
				t.Errorf("%s: %v after %d attempts, not %d", method, err, got, wanted)
			}
		})
	}
	calls.Wait()
}

// overtaken lets a client send the requests of a method only after it has heard how the server has
// answered the headers: another call over the same connection is answered later.
type overtaken struct {
	method string
	client *Client
}

type overtakenKey struct{}

func (o *overtaken) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, overtakenKey{}, info.FullMethodName == o.method)
}

func (o *overtaken) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.OutHeader); ok && ctx.Value(overtakenKey{}) == true {
		if err := getModel(context.Background(), o.client); err != nil {
			panic(err)
		}
	}
}

func (o *overtaken) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (o *overtaken) HandleConn(context.Context, stats.ConnStats) {}

func TestWhatTheServerSaysBeforeItHasTheRequestIsKept(t *testing.T) {
	for method, each := range map[string]struct {
		answer   error
		attempts int
		message  string
	}{
		headracev1.ModelService_DeleteModel_FullMethodName: {
			status.Error(codes.PermissionDenied, "not you"), 1, "not you",
		},
		headracev1.ModelService_ListRunners_FullMethodName: {
			status.Error(codes.Unauthenticated, "who?"), 1, "who?",
		},
		headracev1.ModelService_ListModels_FullMethodName: {
			status.Error(codes.Unavailable, "not now"), 4,
			"the server ended the call before the request was sent: " +
				"max retries exhausted: failed after 4 attempts: EOF",
		},
		headracev1.CompletionService_StreamCompletion_FullMethodName: {
			status.Error(codes.PermissionDenied, "not you"), 1, "not you",
		},
	} {
		t.Run(path.Base(method), func(t *testing.T) {
			t.Parallel()
			refuses := &refusing{asked: map[string]int{}, answers: map[string]error{method: each.answer}}
			address, _ := (&server{}).serve(t, "127.0.0.1:0", grpc.InTapHandle(refuses.tap))
			late := &overtaken{method: method}
			late.client = connect(t, address, WithDialOptions(grpc.WithStatsHandler(late)))
			var err error
			if method == headracev1.CompletionService_StreamCompletion_FullMethodName {
				_, err = late.client.Complete(ctx, &headracev1.StreamCompletionRequest{})
			} else {
				err = late.client.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
			}
			known := failed(t, err)
			if known.Code != status.Code(each.answer) || known.Message != each.message || known.TraceID == "" {
				t.Error(err)
			}
			if got := refuses.attempts(method); got != each.attempts {
				t.Errorf("%d attempts, not %d", got, each.attempts)
			}
		})
	}
}
