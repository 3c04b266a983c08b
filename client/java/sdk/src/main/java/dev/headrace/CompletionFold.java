package dev.headrace;

import dev.headrace.v1.ChoiceResult;
import dev.headrace.v1.CompletionCompleted;
import dev.headrace.v1.CompletionDelta;
import dev.headrace.v1.CompletionStarted;
import dev.headrace.v1.StreamCompletionResponse;
import dev.headrace.v1.TokenLogprob;
import dev.headrace.v1.ToolCall;
import dev.headrace.v1.ToolCallPart;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Supplier;

/** Puts the messages of a completion together, and holds the stream to its word. */
final class CompletionFold {
  private final Supplier<String> traceId;
  private final Map<Integer, Output> outputs = new TreeMap<>();
  private CompletionStarted started;
  private CompletionCompleted completed;

  CompletionFold(Supplier<String> traceId) {
    this.traceId = traceId;
  }

  /**
   * Takes the next message.
   *
   * @throws HeadraceException INTERNAL: the stream breaks its contract
   */
  void add(StreamCompletionResponse message) {
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
      case DELTA -> {
        requireStarted();
        CompletionDelta delta = message.getDelta();
        outputs.computeIfAbsent(delta.getChoice(), choice -> new Output()).add(delta);
      }
      case COMPLETED -> {
        requireStarted();
        complete(message.getCompleted());
      }
      case PROGRESS, EVENT_NOT_SET -> {} // the latter: what a later version adds
    }
  }

  private void complete(CompletionCompleted last) {
    for (int index = 0; index < last.getChoicesCount(); index++) {
      if (last.getChoices(index).getIndex() != index) {
        throw broken("the stream was completed without choice " + index);
      }
    }
    boolean others = outputs.keySet().stream().anyMatch(i -> i < 0 || i >= last.getChoicesCount());
    if (last.getChoicesCount() == 0 || others) {
      throw broken("the stream was completed without all its choices");
    }
    completed = last;
  }

  /** Throws HeadraceException, INTERNAL, where the stream has not been completed. */
  void requireCompleted() {
    if (completed == null) {
      throw broken("the stream ended without being completed: what came of it is not whole");
    }
  }

  /** The whole, of a stream that was completed. */
  Completion result() {
    List<Completion.Choice> choices =
        completed.getChoicesList().stream()
            .map(last -> outputs.getOrDefault(last.getIndex(), new Output()).choice(last))
            .toList();
    return new Completion(choices, started, completed, traceId.get());
  }

  private void requireStarted() {
    if (started == null) {
      throw broken("the stream sent output before it had started");
    }
  }

  private HeadraceException broken(String message) {
    return HeadraceException.broken(Status.INTERNAL, message, traceId.get());
  }

  /** What has come of one choice. */
  private final class Output {
    private final StringBuilder text = new StringBuilder();
    private final StringBuilder reasoning = new StringBuilder();
    private final List<Integer> tokenIds = new ArrayList<>();
    private final List<TokenLogprob> logprobs = new ArrayList<>();
    private final List<ToolCall.Builder> toolCalls = new ArrayList<>();
    private final List<StringBuilder> arguments = new ArrayList<>();

    void add(CompletionDelta delta) {
      text.append(delta.getText());
      reasoning.append(delta.getReasoning());
      tokenIds.addAll(delta.getTokenIdsList());
      logprobs.addAll(delta.getLogprobsList());
      delta.getToolCallsList().forEach(this::add);
    }

    private void add(ToolCallPart part) {
      int index = part.getIndex();
      if (index == toolCalls.size() && part.hasName()) {
        toolCalls.add(ToolCall.newBuilder().setId(part.getId()).setName(part.getName()));
        arguments.add(new StringBuilder());
      } else if (index < 0 || index >= toolCalls.size() || part.hasName()) {
        throw broken("a part of a tool call does not follow the one before");
      }
      arguments.get(index).append(part.getArgumentsJson());
    }

    Completion.Choice choice(ChoiceResult result) {
      List<ToolCall> calls = new ArrayList<>();
      for (int i = 0; i < toolCalls.size(); i++) {
        calls.add(toolCalls.get(i).setArgumentsJson(arguments.get(i).toString()).build());
      }
      return new Completion.Choice(
          text.toString(),
          reasoning.toString(),
          List.copyOf(tokenIds),
          List.copyOf(logprobs),
          List.copyOf(calls),
          result);
    }
  }
}
