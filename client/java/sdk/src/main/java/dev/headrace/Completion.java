package dev.headrace;

import dev.headrace.v1.ChoiceResult;
import dev.headrace.v1.CompletionCompleted;
import dev.headrace.v1.CompletionStarted;
import dev.headrace.v1.FinishReason;
import dev.headrace.v1.TokenLogprob;
import dev.headrace.v1.ToolCall;
import dev.headrace.v1.Usage;
import java.util.List;

/**
 * A whole completion.
 *
 * @param choices by index; one, unless the request asked for more
 * @param started what served the request, and with which seed
 * @param completed the tokens that it took, and the time
 * @param traceId the trace of the call: 32 hexadecimal digits
 */
public record Completion(
    List<Choice> choices,
    CompletionStarted started,
    CompletionCompleted completed,
    String traceId) {

  /**
   * One choice.
   *
   * @param text without what is reasoning or a tool call
   * @param reasoning that of a model that reasons; else empty
   * @param tokenIds of all of it, an end-of-text token included
   * @param logprobs one for each token, where they were asked for; else empty
   * @param toolCalls as the assistant's next message takes them; the arguments of one are no JSON
   *     where the output ended in the midst of it
   * @param result why it ended
   */
  public record Choice(
      String text,
      String reasoning,
      List<Integer> tokenIds,
      List<TokenLogprob> logprobs,
      List<ToolCall> toolCalls,
      ChoiceResult result) {

    /** Why it ended. */
    public FinishReason finishReason() {
      return result.getFinishReason();
    }
  }

  /** The first choice's text. */
  public String text() {
    return choices.get(0).text();
  }

  /** The first choice's reasoning. */
  public String reasoning() {
    return choices.get(0).reasoning();
  }

  /** The first choice's tokens. */
  public List<Integer> tokenIds() {
    return choices.get(0).tokenIds();
  }

  /** The first choice's tool calls. */
  public List<ToolCall> toolCalls() {
    return choices.get(0).toolCalls();
  }

  /** Why the first choice ended. */
  public FinishReason finishReason() {
    return choices.get(0).finishReason();
  }

  /** The tokens that the request took, over all choices. */
  public Usage usage() {
    return completed.getUsage();
  }

  /** How many times it moved to another runner, since the one before was gone. */
  public int resumes() {
    return completed.getResumed();
  }
}
