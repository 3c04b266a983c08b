package dev.headrace;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.util.Iterator;
import java.util.NoSuchElementException;

/**
 * A call whose messages arrive one by one. Iterate it once, in one thread, and close it: closing
 * ends the call on the server, too, and may be done by any thread.
 *
 * <p>Reading throws {@link HeadraceException} when the call fails or is closed under the reader. It
 * is interruptible: the call is cancelled then.
 */
public class ServerStream<T> implements Iterable<T>, Iterator<T>, AutoCloseable {
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final CallTrace trace = new CallTrace();
  private final Iterator<T> messages;
  private HeadraceException failure;

  <Q> ServerStream(Channel channel, MethodDescriptor<Q, T> method, Q request) {
    CallOptions options = CallOptions.DEFAULT.withOption(CallTrace.KEY, trace);
    Context before = context.attach();
    try {
      messages = ClientCalls.blockingServerStreamingCall(channel, method, options, request);
    } catch (HeadraceException refused) {
      close();
      throw refused;
    } finally {
      context.detach(before);
    }
  }

  /** The trace of this call: 32 hexadecimal digits. */
  public String traceId() {
    return trace.id();
  }

  @Override
  public Iterator<T> iterator() {
    return this;
  }

  /**
   * Whether another message comes; waits for it.
   *
   * @throws HeadraceException the call failed, was closed, or ended before it was complete
   */
  @Override
  public boolean hasNext() {
    if (failure != null) {
      throw failure;
    }
    try {
      if (messages.hasNext()) {
        return true;
      }
      ended();
    } catch (StatusRuntimeException error) {
      throw failed(HeadraceException.from(error));
    }
    close();
    return false;
  }

  /**
   * The next message; waits for it.
   *
   * @throws HeadraceException the call failed, was closed, or ended before it was complete
   * @throws NoSuchElementException it has ended
   */
  @Override
  public T next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the stream has ended");
    }
    T message = messages.next();
    try {
      received(message);
    } catch (HeadraceException error) {
      throw failed(error);
    }
    return message;
  }

  /** Ends the call; what is read afterwards is CANCELLED. Does nothing after the end. */
  @Override
  public void close() {
    context.cancel(null);
  }

  /** Reads what is left. */
  final void drain() {
    while (hasNext()) {
      next();
    }
  }

  /** Is given each message before the reader is; throws where it breaks the contract. */
  void received(T message) {}

  /** Is told that the stream has ended well; throws where it should not have. */
  void ended() {}

  private HeadraceException failed(HeadraceException error) {
    failure = error;
    close();
    return error;
  }
}
