package dev.headrace;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;

/**
 * Gives every call its trace, its token and the name of its model, for those who route by it. What
 * a call brings of these itself stays.
 */
final class CallInterceptor implements ClientInterceptor {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> MODEL =
      Metadata.Key.of("headrace-model", Metadata.ASCII_STRING_MARSHALLER);

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
    return new Call<>(next.newCall(method, options), sent, options.getOption(CallTrace.KEY));
  }

  /**
   * A call that begins with its first message and not before it, since the header with the model
   * comes out of the message.
   */
  private static final class Call<Q, R> extends SimpleForwardingClientCall<Q, R> {
    private final String token;
    private final CallTrace trace;
    private Listener<R> listener;
    private Metadata headers;
    private int requested;
    private boolean compressed = true;
    private boolean begun;

    Call(ClientCall<Q, R> call, String token, CallTrace trace) {
      super(call);
      this.token = token;
      this.trace = trace;
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
      this.listener = new TracedListener<>(listener, traceId);
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

  private static final class TracedListener<R> extends SimpleForwardingClientCallListener<R> {
    private final String traceId;

    TracedListener(ClientCall.Listener<R> listener, String traceId) {
      super(listener);
      this.traceId = traceId;
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (!status.isOk()) {
        trailers.discardAll(HeadraceException.TRACE_ID);
        trailers.put(HeadraceException.TRACE_ID, traceId);
      }
      super.onClose(status, trailers);
    }
  }
}
