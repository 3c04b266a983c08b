package dev.headrace;

import dev.headrace.v1.StreamCompletionRequest;
import dev.headrace.v1.StreamImageRequest;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.nio.file.Path;
import java.time.Duration;
import java.time.temporal.ChronoUnit;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * A connection to a controller, or to a runner.
 *
 * <p>It connects at the first call, connects again when the server has been away, and may be shared
 * by threads. Close it when nobody needs it any more.
 *
 * <p>All services of the contract are reached by their generated stubs over {@link #channel}, or by
 * {@link #call} and {@link #stream}. Every call has a deadline where one is set, a trace id and the
 * client's token; a unary call that finds the server UNAVAILABLE is made again, up to three times.
 */
public final class HeadraceClient implements AutoCloseable {
  /** Lifts the limit of time. Without any, the server ends a call after an hour. */
  public static final Duration NO_TIMEOUT = ChronoUnit.FOREVER.getDuration();

  private final Connection connection;
  private final Channel untimed;
  private final Duration timeout;
  private final Channel channel;

  private HeadraceClient(Connection connection, Channel untimed, Duration timeout) {
    this.connection = connection;
    this.untimed = untimed;
    this.timeout = timeout;
    this.channel =
        timeout == null || timeout.equals(NO_TIMEOUT)
            ? untimed
            : ClientInterceptors.intercept(untimed, new Timeout(timeout));
  }

  /**
   * Gives a client of the server that the environment names, else of one on this machine.
   *
   * @throws HeadraceException INVALID_ARGUMENT: see {@link Builder#build}
   */
  public static HeadraceClient create() {
    return builder().build();
  }

  /**
   * Gives a client of a server.
   *
   * @param target see {@link Builder#target}
   * @throws HeadraceException INVALID_ARGUMENT: see {@link Builder#build}
   */
  public static HeadraceClient create(String target) {
    return builder().target(target).build();
  }

  /** Makes a client with options. */
  public static Builder builder() {
    return new Builder();
  }

  /** For generated stubs. Their failures are gRPC's own; see {@link HeadraceException#from}. */
  public Channel channel() {
    return channel;
  }

  /**
   * Gives this client with another limit of time for its calls, streams included. Both have one
   * connection, which closing either closes.
   *
   * @param timeout of each call as a whole, or {@link #NO_TIMEOUT}
   * @throws HeadraceException INVALID_ARGUMENT: it is negative, or null
   */
  public HeadraceClient withTimeout(Duration timeout) {
    return new HeadraceClient(connection, untimed, valid(timeout));
  }

  /**
   * Gives this client with further interceptors around its calls. Both have one connection, which
   * closing either closes. The limit of time is as it was.
   */
  public HeadraceClient withInterceptors(ClientInterceptor... interceptors) {
    return new HeadraceClient(
        connection, ClientInterceptors.intercept(untimed, interceptors), timeout);
  }

  /**
   * Generates, and gives the whole at its end.
   *
   * @throws HeadraceException the call failed
   */
  public Completion complete(StreamCompletionRequest request) {
    try (CompletionStream stream = streamCompletion(request)) {
      return stream.collect();
    }
  }

  /**
   * Generates token by token. Close the stream.
   *
   * @throws HeadraceException INVALID_ARGUMENT: a text of the request is none
   */
  public CompletionStream streamCompletion(StreamCompletionRequest request) {
    return new CompletionStream(channel, request);
  }

  /**
   * Draws images, and gives their files at the end.
   *
   * @throws HeadraceException the call failed; DATA_LOSS: a file was damaged on its way
   */
  public Images image(StreamImageRequest request) {
    try (ImageStream stream = streamImage(request)) {
      return stream.collect();
    }
  }

  /**
   * Draws images, and tells how it goes. Close the stream.
   *
   * @throws HeadraceException INVALID_ARGUMENT: a text of the request is none
   */
  public ImageStream streamImage(StreamImageRequest request) {
    return new ImageStream(channel, request);
  }

  /**
   * Makes a unary call and waits for its answer.
   *
   * @param method such as {@code ModelServiceGrpc.getGetModelMethod()}
   * @throws HeadraceException the call failed
   */
  public <Q, R> R call(MethodDescriptor<Q, R> method, Q request) {
    return call(method, request, new CallTrace());
  }

  /** The same; {@code trace} receives the call's trace id. */
  public <Q, R> R call(MethodDescriptor<Q, R> method, Q request, CallTrace trace) {
    try {
      CallOptions options = CallOptions.DEFAULT.withOption(CallTrace.KEY, trace);
      return ClientCalls.blockingUnaryCall(channel, method, options, request);
    } catch (StatusRuntimeException error) {
      throw HeadraceException.from(error);
    }
  }

  /**
   * Begins a call with a stream of answers. Close the stream.
   *
   * @param method such as {@code ModelServiceGrpc.getWatchModelsMethod()}
   * @throws HeadraceException INVALID_ARGUMENT: a text of the request is none
   */
  public <Q, R> ServerStream<R> stream(MethodDescriptor<Q, R> method, Q request) {
    return new ServerStream<>(channel, method, request);
  }

  /** Closes the connection; calls that run are cancelled. */
  @Override
  public void close() {
    connection.channel().shutdownNow();
  }

  private static Duration valid(Duration timeout) {
    if (timeout == null) {
      throw HeadraceException.invalid(
          "timeout: must not be null; HeadraceClient.NO_TIMEOUT lifts the limit");
    }
    if (timeout.isNegative()) {
      throw HeadraceException.invalid("timeout: must not be negative, and is " + timeout);
    }
    return timeout;
  }

  /** Ends calls that have no deadline of their own after some time. */
  private record Timeout(Duration timeout) implements ClientInterceptor {
    @Override
    public <Q, R> ClientCall<Q, R> interceptCall(
        MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
      return next.newCall(
          method,
          options.getDeadline() != null
              ? options
              : options.withDeadlineAfter(
                  TimeUnit.NANOSECONDS.convert(timeout), TimeUnit.NANOSECONDS));
    }
  }

  /** Options of a client. What is left open the environment says. */
  public static final class Builder {
    private String target;
    private ChannelCredentials credentials;
    private String token;
    private Duration timeout;
    private Path authorities;
    private Path certificate;
    private Path key;
    private Map<String, String> environment = System.getenv();

    private Builder() {}

    /**
     * Where the server is: "host:port", "unix:/path", "https://host:port" for TLS, or another
     * target of gRPC. Without it: HEADRACE_HOST, else 127.0.0.1:50151.
     */
    public Builder target(String target) {
      this.target = target;
      return this;
    }

    /**
     * What the server knows this client by; "" is none. Without it: HEADRACE_TOKEN, if it is set,
     * to whatever target.
     */
    public Builder token(String token) {
      this.token = token;
      return this;
    }

    /**
     * How long a call may take as a whole, unless it says otherwise. Without it: no limit.
     *
     * @throws HeadraceException INVALID_ARGUMENT: it is negative, or null
     */
    public Builder timeout(Duration timeout) {
      this.timeout = valid(timeout);
      return this;
    }

    /**
     * The authorities to trust, a file in PEM. Without it: HEADRACE_TLS_CA, else those that Java
     * trusts.
     */
    public Builder authorities(Path file) {
      authorities = file;
      return this;
    }

    /**
     * The client's own certificate and its key, files in PEM, the key in PKCS #8 and not encrypted.
     * Without it: HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY, if they are set.
     */
    public Builder clientCertificate(Path certificate, Path key) {
      this.certificate = certificate;
      this.key = key;
      return this;
    }

    /** Credentials of the connection, in the place of files and of what the environment says. */
    public Builder credentials(ChannelCredentials credentials) {
      this.credentials = credentials;
      return this;
    }

    /** Is read in the place of the process's environment. */
    public Builder environment(Map<String, String> environment) {
      this.environment = Map.copyOf(environment);
      return this;
    }

    /**
     * Makes the client, which connects at its first call.
     *
     * @throws HeadraceException INVALID_ARGUMENT: the target is none, a token would travel in the
     *     clear to another machine, a file cannot be read, or options contradict each other
     */
    public HeadraceClient build() {
      Endpoint endpoint =
          Endpoint.resolve(
              new Endpoint.Settings(target, credentials, token, authorities, certificate, key),
              environment);
      Connection connection = new Connection(endpoint);
      Channel channel =
          ClientInterceptors.intercept(
              connection.channel(), new CallInterceptor(endpoint.token(), connection::hurry));
      return new HeadraceClient(connection, channel, timeout);
    }
  }
}
