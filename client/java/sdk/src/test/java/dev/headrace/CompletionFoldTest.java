package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.headrace.v1.ChoiceResult;
import dev.headrace.v1.CompletionCompleted;
import dev.headrace.v1.CompletionDelta;
import dev.headrace.v1.CompletionStarted;
import dev.headrace.v1.FinishReason;
import dev.headrace.v1.StreamCompletionResponse;
import dev.headrace.v1.ToolCall;
import dev.headrace.v1.ToolCallPart;
import io.grpc.Status;
import java.util.List;
import org.junit.jupiter.api.Test;

class CompletionFoldTest {
  private final CompletionFold fold = new CompletionFold(() -> "abc");

  private static StreamCompletionResponse started() {
    return StreamCompletionResponse.newBuilder()
        .setStarted(CompletionStarted.newBuilder().setId("1"))
        .build();
  }

  private static StreamCompletionResponse delta(CompletionDelta.Builder delta) {
    return StreamCompletionResponse.newBuilder().setDelta(delta).build();
  }

  private static StreamCompletionResponse text(int choice, String text, Integer... tokens) {
    return delta(
        CompletionDelta.newBuilder()
            .setChoice(choice)
            .setText(text)
            .addAllTokenIds(List.of(tokens)));
  }

  private static StreamCompletionResponse part(ToolCallPart.Builder part) {
    return delta(CompletionDelta.newBuilder().addToolCalls(part));
  }

  private static StreamCompletionResponse completed(int... choices) {
    CompletionCompleted.Builder last = CompletionCompleted.newBuilder().setResumed(2);
    for (int index : choices) {
      last.addChoices(
          ChoiceResult.newBuilder()
              .setIndex(index)
              .setFinishReason(FinishReason.FINISH_REASON_STOP));
    }
    return StreamCompletionResponse.newBuilder().setCompleted(last).build();
  }

  private void breaks(StreamCompletionResponse message) {
    HeadraceException error = assertThrows(HeadraceException.class, () -> fold.add(message));
    assertEquals(Status.Code.INTERNAL, error.code());
    assertEquals("", error.reasonName());
    assertEquals("abc", error.traceId());
  }

  @Test
  void choicesAreKeptApart() {
    fold.add(StreamCompletionResponse.getDefaultInstance());
    fold.add(started());
    fold.add(text(0, "a", 1));
    fold.add(text(1, "x", 7, 8));
    fold.add(text(0, "b", 2));
    fold.add(completed(0, 1, 2));
    Completion whole = fold.result();
    assertEquals("ab", whole.text());
    assertEquals(List.of(1, 2), whole.tokenIds());
    assertEquals("x", whole.choices().get(1).text());
    assertEquals(List.of(7, 8), whole.choices().get(1).tokenIds());
    assertEquals("", whole.choices().get(2).text());
    assertEquals(FinishReason.FINISH_REASON_STOP, whole.finishReason());
    assertEquals(2, whole.resumes());
    assertEquals("abc", whole.traceId());
  }

  @Test
  void toolCallsArePutTogether() {
    fold.add(started());
    fold.add(part(ToolCallPart.newBuilder().setId("c1").setName("weather")));
    fold.add(part(ToolCallPart.newBuilder().setArgumentsJson("{\"city\":")));
    fold.add(part(ToolCallPart.newBuilder().setArgumentsJson("\"Oslo\"}")));
    fold.add(part(ToolCallPart.newBuilder().setIndex(1).setName("time").setArgumentsJson("{}")));
    fold.add(completed(0));
    ToolCall weather =
        ToolCall.newBuilder()
            .setId("c1")
            .setName("weather")
            .setArgumentsJson("{\"city\":\"Oslo\"}")
            .build();
    ToolCall time = ToolCall.newBuilder().setName("time").setArgumentsJson("{}").build();
    assertEquals(List.of(weather, time), fold.result().toolCalls());
  }

  @Test
  void aPartOfAToolCallFollowsTheOneBefore() {
    fold.add(started());
    breaks(part(ToolCallPart.newBuilder().setArgumentsJson("{}")));
    breaks(part(ToolCallPart.newBuilder().setIndex(1).setName("later")));
  }

  @Test
  void outputComesAfterTheStart() {
    breaks(text(0, "a"));
    breaks(completed(0));
  }

  @Test
  void itStartsOnceAndEndsOnce() {
    fold.add(started());
    breaks(started());
    fold.add(completed(0));
    breaks(text(0, "a"));
  }

  @Test
  void everyChoiceEnds() {
    fold.add(started());
    fold.add(text(1, "a"));
    breaks(completed(0));
    breaks(completed());
    breaks(completed(1));
  }

  @Test
  void withoutItsEndItIsNotWhole() {
    fold.add(started());
    assertEquals(
        Status.Code.INTERNAL, assertThrows(HeadraceException.class, fold::requireCompleted).code());
  }
}
