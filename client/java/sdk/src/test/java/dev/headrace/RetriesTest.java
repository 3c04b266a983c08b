package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.headrace.v1.EmbeddingServiceGrpc;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.RunnerServiceGrpc;
import dev.headrace.v1.ScoreServiceGrpc;
import dev.headrace.v1.TokenizeServiceGrpc;
import io.grpc.Grpc;
import io.grpc.HandlerRegistry;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerMethodDefinition;
import io.grpc.Status;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Against a server to which every call is one too many. */
@Timeout(60)
class RetriesTest {
  private static final Set<String> ONCE =
      Set.of(
          "headrace.v1.ModelService/CollectGarbage",
          "headrace.v1.ModelService/CopyModel",
          "headrace.v1.ModelService/DeleteModel");

  private final Map<String, Integer> attempts = new ConcurrentHashMap<>();

  @Test
  void whatChangesTheStoreIsSentOnce() throws IOException {
    Map<String, Integer> expected = new TreeMap<>();
    unaryMethods().forEach(name -> expected.put(name, ONCE.contains(name) ? 1 : 4));
    Server server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .fallbackHandlerRegistry(new Unavailable())
            .build()
            .start();
    try (HeadraceClient client =
        HeadraceClient.builder()
            .environment(Map.of())
            .target("127.0.0.1:" + server.getPort())
            .build()) {
      for (String name : expected.keySet()) {
        HeadraceException error =
            assertThrows(
                HeadraceException.class, () -> client.call(method(name), new byte[0]), name);
        assertEquals(Status.Code.UNAVAILABLE, error.code(), name);
      }
    } finally {
      server.shutdownNow();
    }
    assertEquals(expected, new TreeMap<>(attempts));
  }

  private static Stream<String> unaryMethods() {
    return Stream.concat(
        Stream.of(
                EmbeddingServiceGrpc.getServiceDescriptor(),
                ModelServiceGrpc.getServiceDescriptor(),
                RunnerServiceGrpc.getServiceDescriptor(),
                ScoreServiceGrpc.getServiceDescriptor(),
                TokenizeServiceGrpc.getServiceDescriptor())
            .flatMap(service -> service.getMethods().stream())
            .filter(method -> method.getType() == MethodType.UNARY)
            .map(MethodDescriptor::getFullMethodName),
        Stream.of("grpc.health.v1.Health/Check"));
  }

  private static MethodDescriptor<byte[], byte[]> method(String name) {
    return MethodDescriptor.newBuilder(new Bytes(), new Bytes())
        .setType(MethodType.UNARY)
        .setFullMethodName(name)
        .build();
  }

  private final class Unavailable extends HandlerRegistry {
    @Override
    public ServerMethodDefinition<?, ?> lookupMethod(String name, String authority) {
      return ServerMethodDefinition.create(
          method(name),
          (call, headers) -> {
            attempts.merge(name, 1, Integer::sum);
            Metadata soon = new Metadata();
            soon.put(
                Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER), "1");
            call.close(Status.UNAVAILABLE, soon);
            return new ServerCall.Listener<>() {};
          });
    }
  }

  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] message) {
      return new ByteArrayInputStream(message);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException error) {
        throw Status.INTERNAL.withCause(error).asRuntimeException();
      }
    }
  }
}
