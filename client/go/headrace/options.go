package headrace

import (
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
)

// Option is an option of a [Client].
type Option func(*options)

type options struct {
	token   *string
	tls     *tls.Config
	files   tlsFiles
	timeout time.Duration
	dial    []grpc.DialOption
}

// WithToken says who is calling. It takes the place of HEADRACE_TOKEN; "" sends none.
func WithToken(token string) Option {
	return func(o *options) { o.token = &token }
}

// WithCA names a file of authorities, in PEM, by which the server is to be trusted, and no other.
// It takes the place of HEADRACE_TLS_CA; without either the system's authorities are trusted.
// It means TLS, also for a target without "https://".
func WithCA(file string) Option {
	return func(o *options) { o.files.ca = file }
}

// WithClientCertificate names the client's own certificate and its key, in PEM, for servers that
// ask for one. It takes the place of HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY. It means TLS,
// also for a target without "https://".
func WithClientCertificate(certificateFile, keyFile string) Option {
	return func(o *options) { o.files.certificate, o.files.key = certificateFile, keyFile }
}

// WithTLSConfig connects by TLS with these settings, whatever the environment says.
func WithTLSConfig(config *tls.Config) Option {
	return func(o *options) { o.tls = config }
}

// WithTimeout limits the time of every call whose context has no deadline, a stream's from its
// start to its end. 0, and without this option: no limit but the server's own of an hour.
// [CallTimeout] sets that of one call.
func WithTimeout(timeout time.Duration) Option {
	return func(o *options) { o.timeout = timeout }
}

// WithDialOptions adds options of gRPC, such as interceptors, or the stats handler of otelgrpc for
// spans of the calls. They come after the client's own.
func WithDialOptions(more ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, more...) }
}

// CallTimeout is an option of one call: it limits its time instead of the client's timeout. 0: no
// limit. An earlier deadline of the call's context holds all the same.
func CallTimeout(timeout time.Duration) grpc.CallOption {
	return callTimeout{timeout: timeout}
}

// TraceID is an option of one call: it stores the call's trace id, 32 hexadecimal digits, where id
// points to, once the call is done, or the stream has begun.
func TraceID(id *string) grpc.CallOption {
	return traceID{id: id}
}

type callTimeout struct {
	grpc.EmptyCallOption
	timeout time.Duration
}

type traceID struct {
	grpc.EmptyCallOption
	id *string
}
