package dev.headrace;

import io.grpc.CallOptions;
import io.grpc.stub.AbstractStub;

/**
 * Receives the trace id of a call that is made by a generated stub.
 *
 * <pre>{@code
 * CallTrace trace = new CallTrace();
 * trace.on(stub).getModel(request);
 * log(trace.id());
 * }</pre>
 */
public final class CallTrace {
  static final CallOptions.Key<CallTrace> KEY = CallOptions.Key.create("dev.headrace.CallTrace");

  private volatile String id = "";

  /** Gives the stub whose next call this receives the trace id of. */
  public <S extends AbstractStub<S>> S on(S stub) {
    return stub.withOption(KEY, this);
  }

  /** The trace of the call, 32 hexadecimal digits; empty before it has begun. */
  public String id() {
    return id;
  }

  void set(String id) {
    this.id = id;
  }
}
