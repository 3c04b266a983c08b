package dev.headrace;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.headrace.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import java.io.Serializable;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.regex.Pattern;

/**
 * A call that failed, or could not be made.
 *
 * <p>The methods of {@link HeadraceClient} and its streams throw it. Generated stubs throw gRPC's
 * own exception, of which {@link #from} makes one of these.
 *
 * <pre>{@code
 * switch (error.reason()) {
 *   case ERROR_REASON_MODEL_NOT_FOUND -> offer(error.metadata().get("nearest"));
 *   case ERROR_REASON_QUEUE_FULL -> tryAgainIn(error.retryAfter().orElseThrow());
 *   default -> throw error;
 * }
 * }</pre>
 */
public final class HeadraceException extends StatusRuntimeException {
  private static final long serialVersionUID = 1;

  private static final String DOMAIN = "headrace.dev";
  private static final String PREFIX = "ERROR_REASON_";
  private static final Pattern BROKEN_OFF = Pattern.compile("(?i)RST[_ ]STREAM");

  private static final Metadata.Key<com.google.rpc.Status> DETAILS =
      Metadata.Key.of(
          "grpc-status-details-bin",
          ProtoUtils.metadataMarshaller(com.google.rpc.Status.getDefaultInstance()));

  /** Under which a call's trace id is put into what the server sent at its end. */
  static final Metadata.Key<String> TRACE_ID =
      Metadata.Key.of("headrace-trace-id", Metadata.ASCII_STRING_MARSHALLER);

  /**
   * A field of the request that breaks a rule.
   *
   * @param field its path in the request, such as {@code sampling.temperature}
   * @param description the rule, in words
   */
  public record FieldViolation(String field, String description) implements Serializable {}

  private final String message;
  private final String reasonName;

  @SuppressWarnings("serial") // what Map.copyOf gives is serializable
  private final Map<String, String> metadata;

  private final Duration retryAfter;

  @SuppressWarnings("serial") // and so is what List.copyOf gives
  private final List<FieldViolation> violations;

  private final String traceId;

  private HeadraceException(
      Status status,
      Metadata trailers,
      String reasonName,
      Map<String, String> metadata,
      Duration retryAfter,
      List<FieldViolation> violations,
      String traceId) {
    super(status, trailers);
    this.message =
        Optional.ofNullable(status.getDescription()).orElseGet(() -> status.getCode().name());
    this.reasonName = reasonName;
    this.metadata = Map.copyOf(metadata);
    this.retryAfter = retryAfter;
    this.violations = List.copyOf(violations);
    this.traceId = traceId;
  }

  /**
   * Gives the error of a failed call, as made by a stub, blocking or not.
   *
   * @param error what was thrown, or given to an observer; the status may be deeper in its causes
   * @return the same, as an error of Headrace; UNKNOWN where there is no status in it
   */
  public static HeadraceException from(Throwable error) {
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      if (cause instanceof HeadraceException known) {
        return known;
      }
      if (cause instanceof StatusRuntimeException failed) {
        return of(explained(failed.getStatus()).withCause(error), failed.getTrailers());
      }
      if (cause instanceof StatusException failed) {
        return of(explained(failed.getStatus()).withCause(error), failed.getTrailers());
      }
    }
    return of(Status.UNKNOWN.withDescription(String.valueOf(error)).withCause(error), null);
  }

  /** Something that cannot be asked for, found before anything was sent. */
  static HeadraceException invalid(String message) {
    return invalid(message, null);
  }

  static HeadraceException invalid(String message, Throwable cause) {
    Status status = Status.INVALID_ARGUMENT.withDescription(message).withCause(cause);
    return new HeadraceException(
        status, new Metadata(), "INVALID_REQUEST", Map.of(), null, List.of(), "");
  }

  /** The same of a field of a request. */
  static HeadraceException invalidField(String field, String description) {
    return new HeadraceException(
        Status.INVALID_ARGUMENT.withDescription(field + ": " + description),
        new Metadata(),
        "INVALID_REQUEST",
        Map.of(),
        null,
        List.of(new FieldViolation(field, description)),
        "");
  }

  /** A stream that is not what the contract promises. */
  static HeadraceException broken(Status status, String message, String traceId) {
    return new HeadraceException(
        status.withDescription(message), new Metadata(), "", Map.of(), null, List.of(), traceId);
  }

  /** The status with what is behind it: gRPC tells of a connection no more than "io exception". */
  private static Status explained(Status status) {
    StringBuilder text = new StringBuilder(Objects.requireNonNullElse(status.getDescription(), ""));
    for (Throwable cause = status.getCause(); cause != null; cause = cause.getCause()) {
      String more = cause.getMessage();
      if (more != null && text.indexOf(more) < 0) {
        text.append(text.isEmpty() ? "" : ": ").append(more);
      }
    }
    return text.isEmpty() ? status : status.withDescription(text.toString());
  }

  private static HeadraceException of(Status status, Metadata nullableTrailers) {
    Metadata trailers = nullableTrailers == null ? new Metadata() : nullableTrailers;
    com.google.rpc.Status details = details(trailers);
    String reason = "";
    Map<String, String> metadata = Map.of();
    Duration retryAfter = null;
    List<FieldViolation> violations = List.of();
    for (Any detail : details.getDetailsList()) {
      ErrorInfo info = unpack(detail, ErrorInfo.class);
      if (info != null && info.getDomain().equals(DOMAIN)) {
        reason = info.getReason();
        metadata = info.getMetadataMap();
      }
      RetryInfo retry = unpack(detail, RetryInfo.class);
      if (retry != null) {
        com.google.protobuf.Duration delay = retry.getRetryDelay();
        retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
      }
      BadRequest bad = unpack(detail, BadRequest.class);
      if (bad != null) {
        violations =
            bad.getFieldViolationsList().stream()
                .map(v -> new FieldViolation(v.getField(), v.getDescription()))
                .toList();
      }
    }
    if (!details.getMessage().isEmpty()) {
      status = status.withDescription(details.getMessage());
    }
    if (reason.isEmpty() && isBrokenOff(status)) {
      // Headrace's own INTERNAL has a reason.
      status =
          Status.UNAVAILABLE.withDescription(status.getDescription()).withCause(status.getCause());
    }
    String traceId = Optional.ofNullable(trailers.get(TRACE_ID)).orElse("");
    return new HeadraceException(
        status, trailers, reason, metadata, retryAfter, violations, traceId);
  }

  /**
   * Whether it is how gRPC names a stream that a proxy breaks off, because the server behind it is
   * gone or the deadline has come.
   */
  static boolean isBrokenOff(Status status) {
    return status.getCode() == Status.Code.INTERNAL
        && BROKEN_OFF.matcher(String.valueOf(status.getDescription())).find();
  }

  private static com.google.rpc.Status details(Metadata trailers) {
    try {
      com.google.rpc.Status found = trailers.get(DETAILS);
      return found == null ? com.google.rpc.Status.getDefaultInstance() : found;
    } catch (IllegalArgumentException undecodable) {
      return com.google.rpc.Status.getDefaultInstance();
    }
  }

  private static <M extends Message> M unpack(Any detail, Class<M> kind) {
    try {
      return detail.is(kind) ? detail.unpack(kind) : null;
    } catch (InvalidProtocolBufferException undecodable) {
      return null;
    }
  }

  /** The canonical status code. */
  public Status.Code code() {
    return getStatus().getCode();
  }

  /**
   * The reason of the contract; {@code ERROR_REASON_UNSPECIFIED} where the server gave none, {@code
   * UNRECOGNIZED} for one that is newer than this library.
   */
  public ErrorReason reason() {
    if (reasonName.isEmpty()) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
    try {
      return ErrorReason.valueOf(PREFIX + reasonName);
    } catch (IllegalArgumentException newer) {
      return ErrorReason.UNRECOGNIZED;
    }
  }

  /** The reason as it was sent, such as {@code "QUEUE_FULL"}; empty where the server gave none. */
  public String reasonName() {
    return reasonName;
  }

  /** What happened and what to do about it, for people. */
  public String message() {
    return message;
  }

  /** The keys that the contract documents for the reason. */
  public Map<String, String> metadata() {
    return metadata;
  }

  /** After what time another try makes sense, if the server said so. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(retryAfter);
  }

  /** The fields at fault. */
  public List<FieldViolation> violations() {
    return violations;
  }

  /** The trace of the call, 32 hexadecimal digits; empty where none was made. */
  public String traceId() {
    return traceId;
  }

  @Override
  public String getMessage() {
    String name = reasonName.isEmpty() ? code().name() : code() + " " + reasonName;
    return name + ": " + message + (traceId.isEmpty() ? "" : " (trace " + traceId + ")");
  }
}
