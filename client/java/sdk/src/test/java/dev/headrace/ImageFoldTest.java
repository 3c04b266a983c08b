package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import dev.headrace.v1.ImageChunk;
import dev.headrace.v1.ImageCompleted;
import dev.headrace.v1.ImageResult;
import dev.headrace.v1.ImageStarted;
import dev.headrace.v1.StreamImageResponse;
import io.grpc.Status;
import org.junit.jupiter.api.Test;

class ImageFoldTest {
  private static final String SHA256_OF_ABC =
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

  private static StreamImageResponse started() {
    return StreamImageResponse.newBuilder().setStarted(ImageStarted.newBuilder()).build();
  }

  private static StreamImageResponse chunk(int index, long offset, String data) {
    return StreamImageResponse.newBuilder()
        .setChunk(
            ImageChunk.newBuilder()
                .setIndex(index)
                .setOffset(offset)
                .setData(ByteString.copyFromUtf8(data)))
        .build();
  }

  private static StreamImageResponse completed(int... indices) {
    ImageCompleted.Builder last = ImageCompleted.newBuilder();
    for (int index : indices) {
      last.addImages(ImageResult.newBuilder().setIndex(index).setSha256(SHA256_OF_ABC));
    }
    return StreamImageResponse.newBuilder().setCompleted(last).build();
  }

  private static ImageFold folded(int count, StreamImageResponse... messages) {
    ImageFold fold = new ImageFold(count, () -> "abc");
    for (StreamImageResponse message : messages) {
      fold.add(message);
    }
    fold.requireCompleted();
    return fold;
  }

  private static Status.Code failing(int count, StreamImageResponse... messages) {
    return assertThrows(HeadraceException.class, () -> folded(count, messages)).code();
  }

  @Test
  void filesArePutTogether() {
    Images images =
        folded(
                2,
                started(),
                chunk(0, 0, "a"),
                chunk(1, 0, "ab"),
                chunk(0, 1, "bc"),
                chunk(1, 2, "c"),
                completed(0, 1))
            .result();
    assertEquals(2, images.images().size());
    assertEquals("abc", images.images().get(0).data().toStringUtf8());
    assertEquals("abc", images.images().get(1).data().toStringUtf8());
    assertEquals(1, images.images().get(1).result().getIndex());
  }

  @Test
  void aFileWithAnotherChecksumIsLost() {
    assertEquals(Status.Code.DATA_LOSS, failing(1, started(), chunk(0, 0, "abd"), completed(0)));
    assertEquals(Status.Code.DATA_LOSS, failing(1, started(), completed(0)));
  }

  @Test
  void nothingIsLeftOut() {
    assertEquals(Status.Code.INTERNAL, failing(1, started(), chunk(0, 1, "bc")));
    assertEquals(Status.Code.INTERNAL, failing(2, started(), chunk(0, 0, "abc"), completed(0)));
    assertEquals(
        Status.Code.INTERNAL,
        failing(1, started(), chunk(0, 0, "abc"), chunk(1, 0, "abc"), completed(0)));
    assertEquals(Status.Code.INTERNAL, failing(1, started(), chunk(0, 0, "abc")));
  }

  @Test
  void itStartsOnceAndFirst() {
    assertEquals(Status.Code.INTERNAL, failing(1, started(), started()));
    assertEquals(Status.Code.INTERNAL, failing(1, chunk(0, 0, "abc")));
  }
}
