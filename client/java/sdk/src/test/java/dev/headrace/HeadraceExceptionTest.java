package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.headrace.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class HeadraceExceptionTest {
  private static ErrorInfo.Builder queueFull() {
    return ErrorInfo.newBuilder()
        .setDomain("headrace.dev")
        .setReason("QUEUE_FULL")
        .putMetadata("limit", "64");
  }

  private static HeadraceException of(ErrorInfo.Builder info) {
    com.google.rpc.Status status =
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.RESOURCE_EXHAUSTED.value())
            .setMessage("größer als 水")
            .addDetails(Any.pack(info.build()))
            .addDetails(
                Any.pack(
                    RetryInfo.newBuilder()
                        .setRetryDelay(
                            com.google.protobuf.Duration.newBuilder().setNanos(250_000_000))
                        .build()))
            .addDetails(
                Any.pack(
                    BadRequest.newBuilder()
                        .addFieldViolations(
                            BadRequest.FieldViolation.newBuilder()
                                .setField("n")
                                .setDescription("too many"))
                        .build()))
            .build();
    return HeadraceException.from(StatusProto.toStatusRuntimeException(status));
  }

  @Test
  void allThatTheServerSaysIsThere() {
    HeadraceException error = of(queueFull());
    assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
    assertEquals(ErrorReason.ERROR_REASON_QUEUE_FULL, error.reason());
    assertEquals("QUEUE_FULL", error.reasonName());
    assertEquals("größer als 水", error.message());
    assertEquals("RESOURCE_EXHAUSTED QUEUE_FULL: größer als 水", error.getMessage());
    assertEquals(Map.of("limit", "64"), error.metadata());
    assertEquals(Optional.of(Duration.ofMillis(250)), error.retryAfter());
    assertEquals(
        List.of(new HeadraceException.FieldViolation("n", "too many")), error.violations());
  }

  @Test
  void aReasonThatIsNewerThanThisLibraryHasItsName() {
    HeadraceException error = of(queueFull().setReason("OF_TOMORROW"));
    assertEquals(ErrorReason.UNRECOGNIZED, error.reason());
    assertEquals("OF_TOMORROW", error.reasonName());
  }

  @Test
  void theReasonOfAnotherDomainIsNone() {
    HeadraceException error = of(queueFull().setDomain("example.com"));
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, error.reason());
    assertEquals(Map.of(), error.metadata());
  }

  @Test
  void detailsThatCannotBeReadAreLeftOut() {
    Metadata trailers = new Metadata();
    trailers.put(
        Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER),
        new byte[] {(byte) 0xff});
    HeadraceException error =
        HeadraceException.from(Status.NOT_FOUND.withDescription("gone").asException(trailers));
    assertEquals(Status.Code.NOT_FOUND, error.code());
    assertEquals("gone", error.message());
  }

  @Test
  void theStatusMayBeDeepInside() {
    StatusException failed = Status.ABORTED.withDescription("once more").asException();
    HeadraceException error = HeadraceException.from(new ExecutionException(failed));
    assertEquals(Status.Code.ABORTED, error.code());
    assertSame(error, HeadraceException.from(new ExecutionException(error)));
    HeadraceException other = HeadraceException.from(new IllegalStateException("odd"));
    assertEquals(Status.Code.UNKNOWN, other.code());
  }

  @ParameterizedTest
  @CsvSource({
    "INTERNAL, 'HTTP/2 error code: INTERNAL_ERROR\nReceived Rst Stream', UNAVAILABLE",
    "INTERNAL, 'RST_STREAM closed stream. HTTP/2 error code: NO_ERROR', UNAVAILABLE",
    "INTERNAL, 'something else', INTERNAL",
    "CANCELLED, 'RST_STREAM closed stream. HTTP/2 error code: CANCEL', CANCELLED",
  })
  void aStreamThatAProxyBrokeOffIsUnavailable(
      Status.Code code, String description, Status.Code expected) {
    Status status = code.toStatus().withDescription(description);
    HeadraceException error = HeadraceException.from(status.asRuntimeException());
    assertEquals(expected, error.code());
    assertEquals(description, error.message());
  }
}
