package dev.headrace;

import dev.headrace.v1.ChoiceResult;
import dev.headrace.v1.CompletionCompleted;
import dev.headrace.v1.CompletionDelta;
import dev.headrace.v1.CompletionStarted;
import dev.headrace.v1.StreamCompletionResponse;
import dev.headrace.v1.TokenLogprob;
import dev.headrace.v1.ToolCall;
import dev.headrace.v1.ToolCallPart;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Supplier;

/** Puts the messages of a completion together, and holds the stream to its word. */
final class CompletionFold
    extends StreamFold<StreamCompletionResponse, CompletionStarted, CompletionCompleted> {
  private final Map<Integer, Output> outputs = new TreeMap<>();

  CompletionFold(Supplier<String> traceId) {
    super(traceId);
  }

  @Override
  void take(StreamCompletionResponse message) {
    switch (message.getEventCase()) {
      case STARTED -> start(message.getStarted());
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

  /** The whole, of a stream that was completed. */
  Completion result() {
    List<Completion.Choice> choices =
        completed.getChoicesList().stream()
            .map(last -> outputs.getOrDefault(last.getIndex(), new Output()).choice(last))
            .toList();
    return new Completion(choices, started, completed, traceId.get());
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
