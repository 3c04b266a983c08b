package dev.headrace;

import dev.headrace.v1.EmbeddingServiceGrpc;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.RunnerServiceGrpc;
import dev.headrace.v1.ScoreServiceGrpc;
import dev.headrace.v1.TokenizeServiceGrpc;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.ManagedChannelRegistry;
import io.grpc.MethodDescriptor;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Stream;

/** The channel to a server, with the options that every connection of Headrace is made with. */
final class Connection {
  /**
   * Largest message received. Twice the 16 MiB that the contract allows a prompt, so that what
   * tells of one that long arrives, too.
   */
  private static final int MAX_MESSAGE_BYTES = 32 << 20;

  private static final int MAX_BUFFERED_BYTES = 4 * MAX_MESSAGE_BYTES;
  private static final long RECONNECT_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final ManagedChannel channel;
  private final AtomicLong nextReconnect = new AtomicLong(System.nanoTime());

  /**
   * Prepares a connection; the first call opens it.
   *
   * @throws HeadraceException gRPC cannot use the target or the certificates
   */
  Connection(Endpoint endpoint) {
    try {
      ManagedChannelBuilder<?> builder =
          Grpc.newChannelBuilder(endpoint.target(), endpoint.credentials())
              .maxInboundMessageSize(MAX_MESSAGE_BYTES)
              .keepAliveTime(30, TimeUnit.SECONDS)
              .keepAliveTimeout(10, TimeUnit.SECONDS)
              .disableServiceConfigLookUp()
              .defaultServiceConfig(retries())
              // What is not kept is not sent again: by default no request beyond 1 MiB.
              .perRpcBufferLimit(MAX_MESSAGE_BYTES)
              .retryBufferSize(MAX_BUFFERED_BYTES)
              .userAgent(userAgent());
      if (Target.isLocal(endpoint.target())) {
        builder.proxyDetector(address -> null); // whatever the machine's settings say
      }
      channel = builder.build();
    } catch (IllegalArgumentException | ManagedChannelRegistry.ProviderNotFoundException error) {
      throw HeadraceException.invalid(
          endpoint.target()
              + " cannot be connected to; see that the target is host:port, and that certificates"
              + " and keys are PEM, the key in PKCS #8 and not encrypted: "
              + error.getMessage(),
          error);
    }
  }

  ManagedChannel channel() {
    return channel;
  }

  /**
   * Has a server that is back noticed at the next call, at most once a second. gRPC itself waits
   * longer from one attempt to the next, up to two minutes.
   */
  void hurry() {
    if (channel.getState(false) != ConnectivityState.TRANSIENT_FAILURE) {
      return;
    }
    long now = System.nanoTime();
    long next = nextReconnect.get();
    if (now - next >= 0 && nextReconnect.compareAndSet(next, now + RECONNECT_NANOS)) {
      channel.resetConnectBackoff();
    }
  }

  /**
   * The unary calls are made again while the server is UNAVAILABLE; streams never are, nor what
   * changes the store: an attempt whose answer was lost may have done so.
   */
  private static Map<String, ?> retries() {
    Stream<String> methods =
        Stream.concat(
            Stream.of(
                    EmbeddingServiceGrpc.getServiceDescriptor(),
                    RunnerServiceGrpc.getServiceDescriptor(),
                    ScoreServiceGrpc.getServiceDescriptor(),
                    TokenizeServiceGrpc.getServiceDescriptor())
                .flatMap(service -> service.getMethods().stream())
                .filter(method -> method.getType() == MethodDescriptor.MethodType.UNARY)
                .map(MethodDescriptor::getFullMethodName),
            Stream.of(
                ModelServiceGrpc.getGetModelMethod().getFullMethodName(),
                ModelServiceGrpc.getListModelsMethod().getFullMethodName(),
                ModelServiceGrpc.getListRunnersMethod().getFullMethodName(),
                ModelServiceGrpc.getLoadModelMethod().getFullMethodName(),
                ModelServiceGrpc.getUnloadModelMethod().getFullMethodName(),
                "grpc.health.v1.Health/Check"));
    List<Map<String, String>> names =
        methods
            .map(name -> name.split("/"))
            .map(parts -> Map.of("service", parts[0], "method", parts[1]))
            .toList();
    Map<String, ?> policy =
        Map.of(
            "maxAttempts",
            4.0,
            "initialBackoff",
            "0.1s",
            "maxBackoff",
            "1s",
            "backoffMultiplier",
            2.0,
            "retryableStatusCodes",
            List.of("UNAVAILABLE"));
    return Map.of("methodConfig", List.of(Map.of("name", names, "retryPolicy", policy)));
  }

  private static String userAgent() {
    String version = Connection.class.getPackage().getImplementationVersion();
    return "headrace-java/" + (version == null ? "dev" : version);
  }
}
