package dev.headrace;

import dev.headrace.v1.CompletionDelta;
import dev.headrace.v1.CompletionServiceGrpc;
import dev.headrace.v1.StreamCompletionRequest;
import dev.headrace.v1.StreamCompletionResponse;
import io.grpc.Channel;
import java.util.Iterator;
import java.util.NoSuchElementException;

/**
 * A completion as it is generated. Iterate it for its events, or {@link #text} for text alone; take
 * the whole with {@link #collect}.
 *
 * <p>It ends quietly only when it is complete: otherwise the error that ended it is thrown.
 */
public final class CompletionStream extends ServerStream<StreamCompletionResponse> {
  private final CompletionFold fold = new CompletionFold(this::traceId);

  CompletionStream(Channel channel, StreamCompletionRequest request) {
    super(channel, CompletionServiceGrpc.getStreamCompletionMethod(), request);
  }

  /** The text of the first choice, piece by piece. None is empty. */
  public Iterable<String> text() {
    return () -> new TextIterator(this);
  }

  /**
   * Reads to the end and gives the whole, what was read before included.
   *
   * @throws HeadraceException the call failed, was closed, or ended before it was complete
   */
  public Completion collect() {
    drain();
    return fold.result();
  }

  @Override
  void received(StreamCompletionResponse message) {
    fold.add(message);
  }

  @Override
  void ended() {
    fold.requireCompleted();
  }

  private static final class TextIterator implements Iterator<String> {
    private final CompletionStream stream;
    private String next = "";

    TextIterator(CompletionStream stream) {
      this.stream = stream;
    }

    @Override
    public boolean hasNext() {
      while (next.isEmpty() && stream.hasNext()) {
        CompletionDelta delta = stream.next().getDelta();
        next = delta.getChoice() == 0 ? delta.getText() : "";
      }
      return !next.isEmpty();
    }

    @Override
    public String next() {
      if (!hasNext()) {
        throw new NoSuchElementException("the text has ended");
      }
      String text = next;
      next = "";
      return text;
    }
  }
}
