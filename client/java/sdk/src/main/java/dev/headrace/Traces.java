package dev.headrace;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;
import java.security.SecureRandom;
import java.util.HexFormat;

/**
 * Ties each call to a trace.
 *
 * <p>The current span of OpenTelemetry decides; where there is none a fresh id is made and sent, so
 * that the logs of the services can still be searched for this call.
 */
final class Traces {
  private static final String HEADER = "traceparent";
  private static final Metadata.Key<String> TRACEPARENT = key(HEADER);
  private static final SecureRandom RANDOM = new SecureRandom();

  private Traces() {}

  /** Puts a trace context into headers that have none yet; gives the id of the trace. */
  static String put(Metadata headers) {
    if (!headers.containsKey(TRACEPARENT)) {
      W3CTraceContextPropagator.getInstance()
          .inject(Context.current(), headers, (carrier, name, value) -> set(carrier, name, value));
    }
    if (!headers.containsKey(TRACEPARENT)) {
      // Flag 01: the services may record the trace; whether they do is their setting.
      headers.put(TRACEPARENT, "00-" + random(16) + "-" + random(8) + "-01");
    }
    String[] parts = headers.get(TRACEPARENT).split("-");
    return parts.length > 1 ? parts[1] : "";
  }

  private static void set(Metadata headers, String name, String value) {
    headers.discardAll(key(name));
    headers.put(key(name), value);
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private static String random(int bytes) {
    byte[] made = new byte[bytes];
    RANDOM.nextBytes(made);
    return HexFormat.of().formatHex(made);
  }
}
