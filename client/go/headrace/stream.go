package headrace

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// clockSlack is by how much what breaks a call off for its deadline may be ahead of it.
const clockSlack = 50 * time.Millisecond

// stream is a stream of gRPC whose errors are typed. One with a single request begins when that is
// sent, since the request's model is in its headers.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc // takes back the deadline, once the stream has ended
	call   *callTrace
	begin  func(context.Context) (grpc.ClientStream, error)
	under  grpc.ClientStream // nil until it has begun
	// What it ended with; nil while it runs. Who sends and who receives may be two.
	end atomic.Pointer[error]
}

func (s *stream) open(ctx context.Context) error {
	under, err := s.begin(ctx)
	if err != nil {
		return s.ended(err)
	}
	s.under = under
	return nil
}

// ended gives what the stream ended with: the first that was heard of.
func (s *stream) ended(err error) error {
	if isLate(s.ctx, err) {
		err = context.DeadlineExceeded
	}
	s.cancel()
	err = failure(err, s.call.traceID())
	s.end.CompareAndSwap(nil, &err)
	return *s.end.Load()
}

// isLate says whether a call was broken off because its deadline has come: the clock of a proxy may
// be ahead by a little, and it says nothing but RST_STREAM.
func isLate(ctx context.Context, err error) bool {
	deadline, ok := ctx.Deadline()
	if !ok || err == nil || err == io.EOF || time.Until(deadline) > clockSlack {
		return false
	}
	failed := FromError(err)
	return failed.Code == codes.Unavailable && failed.Reason == ""
}

func (s *stream) SendMsg(message any) error {
	if end := s.end.Load(); end != nil {
		return *end
	}
	if s.under == nil {
		if err := s.open(routed(s.ctx, message)); err != nil {
			return err
		}
	}
	err := s.under.SendMsg(message)
	if err == nil || err == io.EOF { // The latter: the server has ended it, and RecvMsg tells why.
		return err
	}
	return s.ended(err)
}

func (s *stream) RecvMsg(message any) error {
	if end := s.end.Load(); end != nil {
		return *end
	}
	if s.under == nil {
		return s.unsent()
	}
	// What has been cancelled gives nothing more, also if something has come already.
	if err := s.ctx.Err(); err != nil {
		return s.ended(err)
	}
	if err := s.under.RecvMsg(message); err != nil {
		return s.ended(err)
	}
	return nil
}

func (s *stream) Header() (metadata.MD, error) {
	if s.under == nil {
		return nil, s.unsent()
	}
	header, err := s.under.Header()
	return header, failure(err, s.call.traceID())
}

func (s *stream) Trailer() metadata.MD {
	if s.under == nil {
		return nil
	}
	return s.under.Trailer()
}

func (s *stream) CloseSend() error {
	if s.under == nil {
		return s.unsent()
	}
	return failure(s.under.CloseSend(), s.call.traceID())
}

func (s *stream) Context() context.Context {
	if s.under == nil {
		return s.ctx
	}
	return s.under.Context()
}

func (s *stream) unsent() error { return invalid("the request of the stream has not been sent") }
