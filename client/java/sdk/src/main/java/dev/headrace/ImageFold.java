package dev.headrace;

import com.google.protobuf.ByteString;
import dev.headrace.v1.ImageChunk;
import dev.headrace.v1.ImageCompleted;
import dev.headrace.v1.ImageResult;
import dev.headrace.v1.ImageStarted;
import dev.headrace.v1.StreamImageResponse;
import io.grpc.Status;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;

/** Puts the messages of a stream of images together, each file held against its checksum. */
final class ImageFold {
  private final int count;
  private final Supplier<String> traceId;
  private final Map<Integer, ByteString> files = new HashMap<>();
  private final List<Images.Image> images = new ArrayList<>();
  private ImageStarted started;
  private ImageCompleted completed;

  /**
   * @param count images that were asked for
   */
  ImageFold(int count, Supplier<String> traceId) {
    this.count = count;
    this.traceId = traceId;
  }

  /**
   * Takes the next message.
   *
   * @throws HeadraceException INTERNAL: the stream breaks its contract; DATA_LOSS: a file has not
   *     the checksum that the server names
   */
  void add(StreamImageResponse message) {
    if (completed != null) {
      throw broken("the stream went on after it had been completed");
    }
    switch (message.getEventCase()) {
      case STARTED -> {
        if (started != null) {
          throw broken("the stream started twice");
        }
        started = message.getStarted();
      }
      case CHUNK -> {
        requireStarted();
        append(message.getChunk());
      }
      case COMPLETED -> {
        requireStarted();
        complete(message.getCompleted());
      }
      case PROGRESS, PREVIEW, EVENT_NOT_SET -> {} // the last: what a later version adds
    }
  }

  private void append(ImageChunk chunk) {
    ByteString file = files.getOrDefault(chunk.getIndex(), ByteString.EMPTY);
    if (chunk.getOffset() != file.size()) {
      throw broken("the stream left out a part of image " + chunk.getIndex());
    }
    files.put(chunk.getIndex(), file.concat(chunk.getData()));
  }

  private void complete(ImageCompleted last) {
    for (ImageResult result : last.getImagesList()) {
      ByteString data = files.remove(result.getIndex());
      images.add(checked(result, data == null ? ByteString.EMPTY : data));
    }
    boolean ordered = images.size() == count;
    for (int index = 0; ordered && index < count; index++) {
      ordered = images.get(index).result().getIndex() == index;
    }
    if (!ordered || !files.isEmpty()) {
      throw broken("the stream was completed without just the " + count + " asked for");
    }
    completed = last;
  }

  private Images.Image checked(ImageResult result, ByteString data) {
    if (!sha256(data).equals(result.getSha256())) {
      throw HeadraceException.broken(
          Status.DATA_LOSS,
          "image "
              + result.getIndex()
              + " was damaged on its way: its "
              + data.size()
              + " bytes have not the checksum that the server names; ask again with the same seed",
          traceId.get());
    }
    return new Images.Image(result, data);
  }

  /** Throws HeadraceException, INTERNAL, where the stream has not been completed. */
  void requireCompleted() {
    if (completed == null) {
      throw broken("the stream ended without being completed: what came of it is not whole");
    }
  }

  /** The images, of a stream that was completed. */
  Images result() {
    return new Images(List.copyOf(images), started, completed, traceId.get());
  }

  private void requireStarted() {
    if (started == null) {
      throw broken("the stream sent output before it had started");
    }
  }

  private HeadraceException broken(String message) {
    return HeadraceException.broken(Status.INTERNAL, message, traceId.get());
  }

  private static String sha256(ByteString data) {
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      data.asReadOnlyByteBufferList().forEach(digest::update);
      return HexFormat.of().formatHex(digest.digest());
    } catch (NoSuchAlgorithmException impossible) {
      throw new AssertionError("every Java has SHA-256", impossible);
    }
  }
}
