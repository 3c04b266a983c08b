package dev.headrace;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Deadline;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.TimeUnit;

/**
 * Gives every call its trace, its token and the name of its model, for those who route by it. What
 * a call brings of these itself stays.
 */
final class CallInterceptor implements ClientInterceptor {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> MODEL =
      Metadata.Key.of("headrace-model", Metadata.ASCII_STRING_MARSHALLER);

  /**
   * By how much what breaks a call off for its deadline may be ahead of it: a proxy has a clock of
   * its own, and may count whole milliseconds.
   */
  private static final long CLOCK_SLACK_MILLIS = 50;

  private final String token;
  private final Runnable before;

  /**
   * @param token empty: none
   * @param before is run before each call
   */
  CallInterceptor(String token, Runnable before) {
    this.token = token;
    this.before = before;
  }

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
    before.run();
    // gRPC adds what a call's own credentials bring, and would send two tokens.
    String sent = options.getCredentials() == null ? token : "";
    return new Call<>(
        next.newCall(method, options),
        sent,
        options.getOption(CallTrace.KEY),
        options.getDeadline());
  }

  /**
   * A call that begins with its first message and not before it, since the header with the model
   * comes out of the message.
   */
  private static final class Call<Q, R> extends SimpleForwardingClientCall<Q, R> {
    private final String token;
    private final CallTrace trace;
    private final Deadline nullableDeadline;
    private Listener<R> listener;
    private Metadata headers;
    private int requested;
    private boolean compressed = true;
    private boolean begun;

    Call(ClientCall<Q, R> call, String token, CallTrace trace, Deadline nullableDeadline) {
      super(call);
      this.token = token;
      this.trace = trace;
      this.nullableDeadline = nullableDeadline;
    }

    @Override
    public synchronized void start(Listener<R> listener, Metadata headers) {
      if (!token.isEmpty() && !headers.containsKey(AUTHORIZATION)) {
        headers.put(AUTHORIZATION, "Bearer " + token);
      }
      String traceId = Traces.put(headers);
      if (trace != null) {
        trace.set(traceId);
      }
      this.listener = new ClosingListener<>(listener, traceId, nullableDeadline);
      this.headers = headers;
    }

    private void begin() {
      if (begun || listener == null) {
        return;
      }
      begun = true;
      super.start(listener, headers);
      if (!compressed) {
        super.setMessageCompression(false);
      }
      if (requested > 0) {
        super.request(requested);
      }
    }

    @Override
    public synchronized void request(int messages) {
      if (begun) {
        super.request(messages);
      } else {
        requested += messages;
      }
    }

    @Override
    public synchronized void sendMessage(Q message) {
      if (message instanceof Message request) {
        try {
          Texts.check(request);
        } catch (HeadraceException refused) {
          if (!begun) {
            listener = null; // The stub cancels, and what has not begun then never does.
          }
          throw refused;
        }
      }
      if (!begun && headers != null && !headers.containsKey(MODEL)) {
        String model = modelOf(message);
        if (!model.isEmpty()) {
          headers.put(MODEL, model);
        }
      }
      begin();
      super.sendMessage(message);
    }

    @Override
    public synchronized void halfClose() {
      begin();
      super.halfClose();
    }

    @Override
    public synchronized void cancel(String message, Throwable cause) {
      begin(); // so that the listener is told
      super.cancel(message, cause);
    }

    @Override
    public synchronized void setMessageCompression(boolean enabled) {
      if (begun) {
        super.setMessageCompression(enabled);
      } else {
        compressed = enabled;
      }
    }

    @Override
    public synchronized boolean isReady() {
      return begun && super.isReady();
    }
  }

  /** The model that a message names; empty where there is none, or no header can carry it. */
  private static String modelOf(Object request) {
    if (!(request instanceof Message message)) {
      return "";
    }
    FieldDescriptor field = message.getDescriptorForType().findFieldByName("model");
    if (field == null || field.getJavaType() != FieldDescriptor.JavaType.STRING) {
      return "";
    }
    String model = (String) message.getField(field);
    // Another one is no model's name, and is told so by the server.
    return model.chars().allMatch(c -> ' ' <= c && c <= '~') ? model : "";
  }

  /** Makes of a call's end what a caller needs to know of it. */
  private static final class ClosingListener<R> extends SimpleForwardingClientCallListener<R> {
    private final String traceId;
    private final Deadline nullableDeadline;

    ClosingListener(ClientCall.Listener<R> listener, String traceId, Deadline nullableDeadline) {
      super(listener);
      this.traceId = traceId;
      this.nullableDeadline = nullableDeadline;
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (status.isOk()) {
        super.onClose(status, trailers);
        return;
      }
      trailers.discardAll(HeadraceException.TRACE_ID);
      trailers.put(HeadraceException.TRACE_ID, traceId);
      super.onClose(isLate(status) ? late(status) : status, trailers);
    }

    /** Whether a proxy broke the call off because its deadline has come. */
    private boolean isLate(Status status) {
      return nullableDeadline != null
          && HeadraceException.isBrokenOff(status)
          && nullableDeadline.timeRemaining(TimeUnit.MILLISECONDS) <= CLOCK_SLACK_MILLIS;
    }

    private static Status late(Status status) {
      return Status.DEADLINE_EXCEEDED
          .withDescription("the call's deadline passed")
          .withCause(status.asException());
    }
  }
}
