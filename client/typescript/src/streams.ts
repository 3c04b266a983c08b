/** A stream that is held to its word: it ends complete, or with an error. */

import { Code } from "@connectrpc/connect";
import type { Messages } from "./calls.js";
import { HeadraceError } from "./errors.js";
import type { StreamCompletionResponse } from "./gen/headrace/v1/completion_pb.js";
import type { StreamImageResponse } from "./gen/headrace/v1/image_pb.js";

/** Puts the events of a stream together. Pure. */
export interface Fold<Event, Result> {
  /** Takes the next event. Throws for one that breaks the contract, or a file that is damaged. */
  add(event: Event): void;
  /** The whole; undefined as long as it is not complete. */
  result(traceId: string): Result | undefined;
}

/** Events as they come, and the whole that they make. It may be iterated once; the call begins with
 * the first event that is asked for, and ends when the iteration is left. */
export class EventStream<Event, Result> implements AsyncIterable<Event> {
  /** The trace of the call, 32 hexadecimal digits. */
  readonly traceId: string;
  readonly #events: AsyncGenerator<Event, void, undefined>;
  readonly #fold: Fold<Event, Result>;
  readonly #abort: AbortController;
  #failure: unknown;

  /** `abort` cancels the call behind `messages`. */
  constructor(messages: Messages<Event>, fold: Fold<Event, Result>, abort: AbortController) {
    this.traceId = messages.traceId;
    this.#fold = fold;
    this.#abort = abort;
    this.#events = this.#follow(messages);
  }

  /** The events. Throws HeadraceError where the stream does not come to its proper end. */
  [Symbol.asyncIterator](): AsyncIterator<Event, void, undefined> {
    return this.#events;
  }

  /** Reads what is left, and gives the whole, with what was read before.
   *
   * Throws HeadraceError: what ended the stream; CANCELLED where the iteration was left early. */
  async collect(): Promise<Result> {
    for await (const _ of this.#events);
    if (this.#failure) throw this.#failure;
    const whole = this.#fold.result(this.traceId);
    if (whole === undefined) throw this.#error(Code.Canceled, "the stream was left before its end");
    return whole;
  }

  /** Ends the call. Who waits for an event gets the error CANCELLED. */
  cancel(): void {
    this.#abort.abort();
  }

  async *#follow(messages: AsyncIterable<Event>): AsyncGenerator<Event, void, undefined> {
    try {
      for await (const event of messages) {
        this.#fold.add(event);
        yield event;
      }
      if (this.#fold.result(this.traceId) === undefined) {
        throw broken("the stream ended without being completed: what came of it is not whole");
      }
    } catch (error) {
      const own = error instanceof HeadraceError && !error.traceId && !error.reason;
      this.#failure = own ? this.#error(error.code, error.message) : error;
      throw this.#failure;
    }
  }

  #error(code: Code, message: string): HeadraceError {
    return new HeadraceError(code, message, { traceId: this.traceId });
  }
}

/** Throws where the next event breaks the order of every stream: it starts once, sends output after
 * that, and nothing once it has been completed. */
export function checkOrder(
  next: (StreamCompletionResponse | StreamImageResponse)["event"]["case"],
  started: unknown,
  completed: unknown,
): void {
  if (completed) throw broken("the stream went on after it had been completed");
  switch (next) {
    case "started":
      if (started) throw broken("the stream started twice");
      break;
    case "delta":
    case "chunk":
    case "completed":
      if (!started) throw broken("the stream sent output before it had started");
      break;
  }
}

/** The error of a stream that breaks its contract. */
export function broken(message: string): HeadraceError {
  return new HeadraceError(Code.Internal, message);
}
