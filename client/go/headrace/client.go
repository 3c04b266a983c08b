package headrace

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const modelHeader = "headrace-model"

// Largest message that is received: twice what the contract allows a prompt.
const maxMessageBytes = 32 << 20

// How a connection that was lost is made again: waits of 0.1 to 2 s between tries.
var reconnect = grpc.ConnectParams{
	Backoff: backoff.Config{
		BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
	},
	MinConnectTimeout: 20 * time.Second,
}

// A broken connection is noticed within 40 s while there are calls. Servers refuse pings within
// 10 s of each other.
var pings = keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}

// Client is a connection to a controller, or to a runner. It connects at the first call, and again
// by itself when the connection was lost. It may be used by any number of goroutines. Close it.
//
// It is a [grpc.ClientConnInterface]: stubs of all services make their calls over it.
type Client struct {
	conn    *grpc.ClientConn
	token   secret
	timeout time.Duration
}

var _ grpc.ClientConnInterface = (*Client)(nil)

// secret gives a text that is not to be in any log. It is a function, for fmt prints the unexported
// fields of a struct without asking for their String; of a function it prints the address.
type secret func() string

func secretOf(text string) secret { return func() string { return text } }

// New prepares a connection.
//
// The target is "host:port", "https://host:port" for TLS, "unix:/path", or another target of gRPC.
// Without a port it is 50151. "" stands for the environment's HEADRACE_HOST, else
// 127.0.0.1:50151.
//
// It fails with [ReasonInvalidRequest] for what is no target, where a token would travel in the clear
// to another machine, and for files that cannot be used.
func New(target string, opts ...Option) (*Client, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.timeout < 0 {
		return nil, invalid("the timeout is %v; give 0 for none", o.timeout)
	}
	to, err := resolveEndpoint(target, &o)
	if err != nil {
		return nil, err
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("headrace-go/" + Version),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // else the DNS could change the retries
		grpc.WithConnectParams(reconnect),
		grpc.WithKeepaliveParams(pings),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			// What is larger than this would not be sent a second time.
			grpc.MaxRetryRPCBufferSize(maxMessageBytes),
		),
	}
	if to.tls != nil {
		dial = append(dial, grpc.WithTransportCredentials(credentials.NewTLS(to.tls)))
	}
	if isLocal(to.target) {
		dial = append(dial, grpc.WithNoProxy())
	}
	dial = append(append(dial, o.dial...), grpc.WithStatsHandler(traceHandler{}))
	conn, err := grpc.NewClient(to.target, dial...)
	if err != nil {
		return nil, invalid("there is no way to %s: %v", to.target, err)
	}
	return &Client{conn: conn, token: secretOf(to.token), timeout: o.timeout}, nil
}

// Close closes the connection. Calls that run are cancelled.
func (c *Client) Close() error { return c.conn.Close() }

// Target gives where the client connects to, as gRPC takes it.
func (c *Client) Target() string { return c.conn.Target() }

// String names the client by where it connects to, and leaves its token out.
func (c *Client) String() string { return "headrace.Client(" + c.Target() + ")" }

// LogValue is what log/slog writes of the client.
func (c *Client) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Invoke makes a unary call; the stubs use it. Errors are of the type [*Error].
func (c *Client) Invoke(
	ctx context.Context, method string, args, reply any, opts ...grpc.CallOption,
) error {
	ctx, cancel := c.limited(ctx, opts)
	defer cancel()
	ctx, call := c.prepared(ctx)
	err := c.conn.Invoke(routed(ctx, args), method, args, reply, opts...)
	if errors.Is(err, io.EOF) {
		// The last attempt was ended before its request was sent, as by a proxy that is quick to
		// refuse. gRPC loses what was said then; only after UNAVAILABLE are there attempts to exhaust.
		err = status.Errorf(codes.Unavailable, "the server ended the call before the request was sent: %v", err)
	}
	call.tell(opts)
	return failure(err, call.traceID())
}

// NewStream begins a stream; the stubs use it. Errors of its methods are of the type [*Error], but
// for io.EOF.
func (c *Client) NewStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	ctx, cancel := c.limited(ctx, opts)
	ctx, call := c.prepared(ctx)
	begin := func(ctx context.Context) (grpc.ClientStream, error) {
		defer call.tell(opts)
		return c.conn.NewStream(ctx, desc, method, opts...)
	}
	made := &stream{ctx: ctx, cancel: cancel, call: call, begin: begin}
	if !desc.ClientStreams {
		return made, nil // The header for routing comes out of the request, which is still to come.
	}
	if err := made.open(ctx); err != nil {
		return nil, err
	}
	return made, nil
}

// limited gives the call's context the deadline that is due.
func (c *Client) limited(
	ctx context.Context, opts []grpc.CallOption,
) (context.Context, context.CancelFunc) {
	timeout := c.timeout
	if _, ok := ctx.Deadline(); ok {
		timeout = 0
	}
	for _, opt := range opts {
		if own, ok := opt.(callTimeout); ok {
			timeout = own.timeout
		}
	}
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

// prepared gives the call's context what is sent with every call; and its trace.
func (c *Client) prepared(ctx context.Context) (context.Context, *callTrace) {
	ctx, call := traced(ctx)
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	// A call may bring its own.
	if token := c.token(); token != "" && len(outgoing.Get("authorization")) == 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return ctx, call
}

// routed adds the header by which a proxy tells the calls for one model from others, unless the call
// brings its own.
func routed(ctx context.Context, request any) context.Context {
	if outgoing, _ := metadata.FromOutgoingContext(ctx); len(outgoing.Get(modelHeader)) > 0 {
		return ctx
	}
	named, ok := request.(interface{ GetModel() string })
	// What is no plain text is no model's name, and is told so by the server.
	if !ok || named.GetModel() == "" || !isPrintable(named.GetModel()) {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, modelHeader, named.GetModel())
}

// failure gives the error of a call that ended with err.
func failure(err error, traceID string) error {
	if err == nil || err == io.EOF {
		return err
	}
	failed := *FromError(err)
	failed.TraceID = traceID
	return &failed
}
