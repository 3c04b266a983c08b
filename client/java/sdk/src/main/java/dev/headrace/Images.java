package dev.headrace;

import com.google.protobuf.ByteString;
import dev.headrace.v1.ImageCompleted;
import dev.headrace.v1.ImageResult;
import dev.headrace.v1.ImageStarted;
import java.util.List;

/**
 * The images of a request.
 *
 * @param images by index
 * @param started what served the request, and with which settings
 * @param completed where the time went
 * @param traceId the trace of the call: 32 hexadecimal digits
 */
public record Images(
    List<Image> images, ImageStarted started, ImageCompleted completed, String traceId) {

  /**
   * One image.
   *
   * @param result its seed, size, media type and checksum
   * @param data the file, which has that checksum
   */
  public record Image(ImageResult result, ByteString data) {}
}
