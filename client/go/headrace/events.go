package headrace

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// fold puts the messages of a stream together, and holds the stream to its word.
type fold[M, R any] interface {
	add(message *M) error
	// result is that of a stream which has ended with the status OK.
	result(traceID string) (*R, error)
}

// order is that of every stream: it starts once, sends output after that, and nothing once it has
// been completed.
type order[S, C any] struct {
	started   *S
	completed *C
}

// next takes the next message: what it starts the stream with, if it does, and whether it is
// output, the last included.
func (o *order[S, C]) next(started *S, output bool) error {
	switch {
	case o.completed != nil:
		return broken("the stream went on after it had been completed")
	case started != nil && o.started != nil:
		return broken("the stream started twice")
	case started != nil:
		o.started = started
	case output && o.started == nil:
		return broken("the stream sent output before it had started")
	}
	return nil
}

// Stream is a stream that knows how it has to end: its messages are of the type M, and what they
// come to is an R. One that stops early or breaks the contract ends with an error, never quietly.
//
// It belongs to one goroutine at a time; Close may be called by any. Close it, unless it has been
// read to its end.
type Stream[M, R any] struct {
	traceID string
	cancel  context.CancelFunc
	under   grpc.ServerStreamingClient[M]
	fold    fold[M, R]
	end     error // nil until it has ended; io.EOF where it is whole
	whole   *R
}

// begun makes a Stream of a call that begin makes.
func begun[M, R any](
	ctx context.Context,
	fold fold[M, R],
	opts []grpc.CallOption,
	begin func(context.Context, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error),
) (*Stream[M, R], error) {
	ctx, cancel := context.WithCancel(ctx)
	made := &Stream[M, R]{cancel: cancel, fold: fold}
	// A caller's own wish for the id is kept: it is behind this one.
	under, err := begin(ctx, append([]grpc.CallOption{TraceID(&made.traceID)}, opts...)...)
	if err != nil {
		cancel()
		return nil, err
	}
	made.under = under
	return made, nil
}

// TraceID gives the id of the call's trace, 32 hexadecimal digits.
func (s *Stream[M, R]) TraceID() string { return s.traceID }

// Close ends the call, and what the server does for it. After the stream's end it does nothing.
func (s *Stream[M, R]) Close() { s.cancel() }

// Recv gives the next message. At the end of a stream that is whole the error is io.EOF, else an
// [*Error].
func (s *Stream[M, R]) Recv() (*M, error) {
	if s.end != nil {
		return nil, s.end
	}
	message, err := s.under.Recv()
	if err == nil {
		err = s.fold.add(message)
	} else if err == io.EOF {
		if s.whole, err = s.fold.result(s.traceID); err == nil {
			err = io.EOF
		}
	}
	if err != nil {
		s.cancel()
		s.end = failure(err, s.traceID)
		return nil, s.end
	}
	return message, nil
}

// Events gives the messages as they come. The error is nil but for the last pair, which is there
// only where the stream fails. Whoever leaves the loop can go on with the rest.
func (s *Stream[M, R]) Events() iter.Seq2[*M, error] {
	return func(yield func(*M, error) bool) {
		for {
			message, err := s.Recv()
			if err == io.EOF || !yield(message, err) || err != nil {
				return
			}
		}
	}
}

// Collect reads what is left, and gives the whole, what was read before included.
func (s *Stream[M, R]) Collect() (*R, error) {
	for {
		switch _, err := s.Recv(); err {
		case nil:
		case io.EOF:
			return s.whole, nil
		default:
			return nil, err
		}
	}
}

// incomplete is the error of a stream that lacks its end.
func incomplete() error {
	return broken("the stream ended without being completed: what came of it is not whole")
}

// broken is the error of a stream that breaks its contract.
func broken(message string) error {
	return &Error{Code: codes.Internal, Message: message}
}
