/** A completion: its stream, and the whole that it makes. */

import type { Usage } from "./gen/headrace/v1/common_pb.js";
import type {
  CompletionCompleted,
  CompletionDelta,
  CompletionStarted,
  FinishReason,
  StreamCompletionResponse,
  TokenLogprob,
  ToolCallPart,
} from "./gen/headrace/v1/completion_pb.js";
import { broken, checkOrder, EventStream, type Fold } from "./streams.js";

/** A call that the model asks for, put together. */
export interface CompletedToolCall {
  readonly id: string;
  readonly name: string;
  /** A JSON object, if the call is whole; the output may have ended in the midst of it. */
  readonly argumentsJson: string;
}

/** One of the independent outputs of a request. */
export interface Choice {
  /** The output, without what is reasoning or a tool call. */
  readonly text: string;
  readonly reasoning: string;
  readonly toolCalls: readonly CompletedToolCall[];
  readonly tokenIds: readonly number[];
  /** One for each of `tokenIds`, if they were asked for. */
  readonly logprobs: readonly TokenLogprob[];
  readonly finishReason: FinishReason;
}

/** A whole completion; of several choices the first is at hand. */
export interface Completion extends Choice {
  readonly choices: readonly Choice[];
  readonly usage: Usage | undefined;
  /** How many times the stream moved to another runner. */
  readonly resumes: number;
  readonly started: CompletionStarted;
  /** With the timings, and what stopped each choice. */
  readonly completed: CompletionCompleted;
  readonly traceId: string;
}

/** The stream of a completion. */
export class CompletionStream extends EventStream<StreamCompletionResponse, Completion> {
  /** The text of a choice as it comes, instead of the events. */
  async *text(choice = 0): AsyncGenerator<string, void, undefined> {
    for await (const { event } of this) {
      if (event.case === "delta" && event.value.choice === choice && event.value.text) {
        yield event.value.text;
      }
    }
  }
}

/** Folds a completion. */
export class CompletionFold implements Fold<StreamCompletionResponse, Completion> {
  readonly #choices: number;
  readonly #deltas: CompletionDelta[] = [];
  #started: CompletionStarted | undefined;
  #completed: CompletionCompleted | undefined;

  /** `choices`: outputs that were asked for. */
  constructor(choices: number) {
    this.#choices = choices;
  }

  add({ event }: StreamCompletionResponse): void {
    checkOrder(event.case, this.#started, this.#completed);
    switch (event.case) {
      case "started":
        this.#started = event.value;
        break;
      case "delta":
        this.#append(event.value);
        break;
      case "completed":
        this.#complete(event.value);
        break;
    }
  }

  result(traceId: string): Completion | undefined {
    const [started, completed] = [this.#started, this.#completed];
    if (!started || !completed) return undefined;
    const choices = completed.choices.map(({ index, finishReason }) =>
      choiceOf(
        this.#deltas.filter((delta) => delta.choice === index),
        finishReason,
      ),
    );
    const [first] = choices;
    if (!first) return undefined;
    const { usage, resumed } = completed;
    return { ...first, choices, usage, resumes: resumed, started, completed, traceId };
  }

  #append(delta: CompletionDelta): void {
    if (delta.choice < 0 || delta.choice >= this.#choices)
      throw broken("the stream sent output of a choice that was not asked for");
    this.#deltas.push(delta);
  }

  #complete(completed: CompletionCompleted): void {
    const whole = completed.choices.every(({ index }, place) => index === place);
    if (!whole || completed.choices.length !== this.#choices) {
      throw broken(
        `the stream was completed with other choices than the ${this.#choices} asked for`,
      );
    }
    this.#completed = completed;
  }
}

function choiceOf(deltas: readonly CompletionDelta[], finishReason: FinishReason): Choice {
  return {
    text: deltas.map((delta) => delta.text).join(""),
    reasoning: deltas.map((delta) => delta.reasoning).join(""),
    toolCalls: toolCallsOf(deltas.flatMap((delta) => delta.toolCalls)),
    tokenIds: deltas.flatMap((delta) => delta.tokenIds),
    logprobs: deltas.flatMap((delta) => delta.logprobs),
    finishReason,
  };
}

function toolCallsOf(parts: readonly ToolCallPart[]): CompletedToolCall[] {
  const calls: { id: string; name: string; argumentsJson: string }[] = [];
  for (const { index, id = "", name, argumentsJson } of parts) {
    const call = calls[index];
    if (index === calls.length && name !== undefined) calls.push({ id, name, argumentsJson });
    else if (call && name === undefined) call.argumentsJson += argumentsJson;
    else throw broken("a part of a tool call does not follow the one before");
  }
  return calls;
}
