package dev.headrace;

import io.grpc.Status;
import java.util.function.Supplier;

/**
 * Puts the messages of a stream together, and holds it to the order of every stream: it starts
 * once, sends output after that, and nothing once it has been completed.
 *
 * @param <M> a message
 * @param <S> what the stream starts with
 * @param <C> what it is completed with
 */
abstract class StreamFold<M, S, C> {
  final Supplier<String> traceId;
  S started;
  C completed;

  StreamFold(Supplier<String> traceId) {
    this.traceId = traceId;
  }

  /**
   * Takes the next message.
   *
   * @throws HeadraceException INTERNAL: the stream breaks its contract; DATA_LOSS: a file has not
   *     the checksum that the server names
   */
  final void add(M message) {
    if (completed != null) {
      throw broken("the stream went on after it had been completed");
    }
    take(message);
  }

  /** Takes a message of a stream that has not been completed. */
  abstract void take(M message);

  final void start(S first) {
    if (started != null) {
      throw broken("the stream started twice");
    }
    started = first;
  }

  final void requireStarted() {
    if (started == null) {
      throw broken("the stream sent output before it had started");
    }
  }

  /** Throws HeadraceException, INTERNAL, where the stream has not been completed. */
  final void requireCompleted() {
    if (completed == null) {
      throw broken("the stream ended without being completed: what came of it is not whole");
    }
  }

  final HeadraceException broken(String message) {
    return HeadraceException.broken(Status.INTERNAL, message, traceId.get());
  }
}
