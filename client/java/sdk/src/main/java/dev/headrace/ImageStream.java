package dev.headrace;

import dev.headrace.v1.ImageServiceGrpc;
import dev.headrace.v1.StreamImageRequest;
import dev.headrace.v1.StreamImageResponse;
import io.grpc.Channel;

/**
 * Images as they are drawn. Iterate it for its events; take the files with {@link #collect}.
 *
 * <p>It ends quietly only when all images are there and have the checksums that the server names.
 */
public final class ImageStream extends ServerStream<StreamImageResponse> {
  private final ImageFold fold;

  ImageStream(Channel channel, StreamImageRequest request) {
    super(channel, ImageServiceGrpc.getStreamImageMethod(), request);
    fold = new ImageFold(request.hasCount() ? request.getCount() : 1, this::traceId);
  }

  /**
   * Reads to the end and gives the images, what was read before included.
   *
   * @throws HeadraceException the call failed, was closed, or ended before it was complete;
   *     DATA_LOSS: a file has not its checksum
   */
  public Images collect() {
    drain();
    return fold.result();
  }

  @Override
  void received(StreamImageResponse message) {
    fold.add(message);
  }

  @Override
  void ended() {
    fold.requireCompleted();
  }
}
