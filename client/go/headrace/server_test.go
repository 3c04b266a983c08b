package headrace

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	headracev1 "headrace.dev/go/headrace/v1"
)

// server does what a test tells it, on a port of its own, and notes what came with each call.
type server struct {
	headracev1.UnimplementedModelServiceServer
	headracev1.UnimplementedCompletionServiceServer
	headracev1.UnimplementedImageServiceServer

	getModel func(ctx context.Context, attempt int) (*headracev1.GetModelResponse, error)
	complete func(
		request *headracev1.StreamCompletionRequest,
		stream grpc.ServerStreamingServer[headracev1.StreamCompletionResponse],
	) error
	images []*headracev1.StreamImageResponse

	mutex sync.Mutex
	calls []metadata.MD
}

func (s *server) note(ctx context.Context) int {
	found, _ := metadata.FromIncomingContext(ctx)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.calls = append(s.calls, found)
	return len(s.calls)
}

// attempts gives how many calls have come.
func (s *server) attempts() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.calls)
}

// header gives what the last call had under a name.
func (s *server) header(name string) []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.calls[len(s.calls)-1].Get(name)
}

func (s *server) GetModel(
	ctx context.Context, request *headracev1.GetModelRequest,
) (*headracev1.GetModelResponse, error) {
	attempt := s.note(ctx)
	if s.getModel == nil {
		return &headracev1.GetModelResponse{}, nil
	}
	return s.getModel(ctx, attempt)
}

func (s *server) StreamCompletion(
	request *headracev1.StreamCompletionRequest,
	stream grpc.ServerStreamingServer[headracev1.StreamCompletionResponse],
) error {
	s.note(stream.Context())
	return s.complete(request, stream)
}

func (s *server) StreamImage(
	request *headracev1.StreamImageRequest,
	stream grpc.ServerStreamingServer[headracev1.StreamImageResponse],
) error {
	s.note(stream.Context())
	for _, message := range s.images {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the server at an address, which is given; it ends with the test, or by stop.
func (s *server) serve(t *testing.T, address string, opts ...grpc.ServerOption) (at string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	made := grpc.NewServer(opts...)
	headracev1.RegisterModelServiceServer(made, s)
	headracev1.RegisterCompletionServiceServer(made, s)
	headracev1.RegisterImageServiceServer(made, s)
	var ended sync.WaitGroup
	ended.Go(func() { _ = made.Serve(listener) })
	stop = func() { made.Stop(); ended.Wait() }
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// connected gives a client of the server.
func (s *server) connected(t *testing.T, opts ...Option) *Client {
	t.Helper()
	address, _ := s.serve(t, "127.0.0.1:0")
	return connect(t, address, opts...)
}

func connect(t *testing.T, target string, opts ...Option) *Client {
	t.Helper()
	client, err := New(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// getModel is the simplest unary call.
func getModel(ctx context.Context, client *Client, opts ...grpc.CallOption) error {
	request := &headracev1.GetModelRequest{Model: "tiny:q4"}
	_, err := headracev1.NewModelServiceClient(client).GetModel(ctx, request, opts...)
	return err
}

// failed gives the error as an *Error, which it has to be.
func failed(t *testing.T, err error) *Error {
	t.Helper()
	found, ok := err.(*Error)
	if !ok {
		t.Fatalf("%v (%T) is no *Error", err, err)
	}
	return found
}

// clean takes Headrace's variables out of the environment.
func clean(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"HOST", "TOKEN", "TLS_CA", "CLIENT_CERT", "CLIENT_KEY",
	} {
		t.Setenv("HEADRACE_"+name, "")
	}
}
