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
final class ImageFold extends StreamFold<StreamImageResponse, ImageStarted, ImageCompleted> {
  private final int count;
  private final Map<Integer, ByteString> files = new HashMap<>();
  private final List<Images.Image> images = new ArrayList<>();

  /**
   * @param count images that were asked for
   */
  ImageFold(int count, Supplier<String> traceId) {
    super(traceId);
    this.count = count;
  }

  @Override
  void take(StreamImageResponse message) {
    switch (message.getEventCase()) {
      case STARTED -> start(message.getStarted());
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

  /** The images, of a stream that was completed. */
  Images result() {
    return new Images(List.copyOf(images), started, completed, traceId.get());
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
