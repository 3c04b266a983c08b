/** How every call is made, whatever the transport: headers, deadline, trace, retry, typed errors. */

import type {
  DescMessage,
  DescMethodServerStreaming,
  DescMethodUnary,
  DescService,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import {
  type CallOptions,
  type Client,
  ConnectError,
  makeAnyClient,
  type Transport,
} from "@connectrpc/connect";
import { invalid } from "./errors.js";
import { checkOptions } from "./options.js";
import { modelOf, requestOf } from "./requests.js";
import { isRepeatable, nextAttempt, pause } from "./retry.js";
import { aborted, fromConnectError } from "./status.js";
import { injectTrace, note } from "./trace.js";

const MODEL = "headrace-model";
/** Those of Connect. */
const CALL_OPTIONS: readonly (keyof CallOptions)[] = [
  "timeoutMs",
  "headers",
  "signal",
  "onHeader",
  "onTrailer",
  "contextValues",
];
const DEFAULTS: readonly (keyof CallDefaults)[] = ["timeoutMs", "token"];
/** What gRPC's header for timeouts has room for, a day and more. */
const LONGEST_MS = 99_999_999;

/** What holds for every call of a client. */
export interface CallDefaults {
  /** Milliseconds that a call may take; a call's own `timeoutMs` wins. Default: no limit here; the
   * server ends a call after an hour. */
  readonly timeoutMs?: number | undefined;
  /** Who is calling, to a server that asks for tokens. */
  readonly token?: string | undefined;
}

/** A stream of messages, with its trace. */
export interface Messages<T> extends AsyncIterable<T> {
  readonly traceId: string;
}

interface Call {
  readonly headers: Headers;
  readonly traceId: string;
  readonly target: string;
  readonly signal: AbortSignal | undefined;
}

/** Makes calls by a transport. */
export class Calls {
  readonly #transport: Transport;
  readonly #target: string;
  readonly #defaults: CallDefaults;

  /** `target`: what errors call the server. */
  constructor(transport: Transport, target: string, defaults: CallDefaults) {
    checkOptions(defaults, DEFAULTS, "a client");
    timeoutOf(defaults.timeoutMs);
    this.#transport = transport;
    this.#target = target;
    this.#defaults = defaults;
  }

  /** The stubs of a service. */
  stubs<S extends DescService>(service: S): Client<S> {
    return makeAnyClient(service, (method) => {
      switch (method.methodKind) {
        case "unary":
          return (request, options) => this.unary(method, request, options);
        case "server_streaming":
          return (request, options) => this.stream(method, request, options);
        default:
          return null; // The contract has none.
      }
    }) as Client<S>;
  }

  /** One request, one answer. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const call = this.#call(options);
    const message = this.#prepare(call, method, request, options);
    const timeout = this.#timeout(options);
    const end = endOf(timeout);
    for (let made = 1; ; made++) {
      try {
        const response = await this.#transport.unary(
          method,
          options.signal,
          timeout && Math.max(1, Math.ceil(end - performance.now())),
          call.headers,
          message,
          options.contextValues,
        );
        options.onHeader?.(response.header);
        options.onTrailer?.(response.trailer);
        return note(response.message, call.traceId);
      } catch (error) {
        if (!(error instanceof ConnectError)) throw error;
        const failure = fromConnectError(error, call, end);
        const wait = isRepeatable(method) ? nextAttempt(failure.code, error, made) : undefined;
        if (wait === undefined || performance.now() + wait >= end) throw failure;
        await pause(wait, options.signal);
        if (options.signal?.aborted) throw aborted(options.signal, call.traceId);
      }
    }
  }

  /** One request, a stream of answers. The call is made when the first is asked for, and cancelled
   * when the iteration is left. It is never made again. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Messages<MessageShape<O>> {
    const call = this.#call(options);
    const messages = this.#messages(call, method, request, options);
    const stream = { traceId: call.traceId, [Symbol.asyncIterator]: () => messages };
    return note(stream, call.traceId);
  }

  async *#messages<I extends DescMessage, O extends DescMessage>(
    call: Call,
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const message = this.#prepare(call, method, request, options);
    const timeout = this.#timeout(options);
    const end = endOf(timeout);
    // The transport does not notice by itself that nobody iterates any more.
    const left = new AbortController();
    const signals = [left.signal, ...(options.signal ? [options.signal] : [])];
    let answers: AsyncIterator<MessageShape<O>> | undefined;
    try {
      const response = await this.#transport.stream(
        method,
        AbortSignal.any(signals),
        timeout,
        call.headers,
        once(message),
        options.contextValues,
      );
      options.onHeader?.(response.header);
      answers = response.message[Symbol.asyncIterator]();
      for (let next = await answers.next(); !next.done; next = await answers.next()) {
        yield note(next.value, call.traceId);
      }
      options.onTrailer?.(response.trailer);
    } catch (error) {
      throw error instanceof ConnectError ? fromConnectError(error, call, end) : error;
    } finally {
      left.abort();
      // So that Connect clears the timer of the deadline, which would keep the process alive.
      answers?.next().catch(() => undefined);
    }
  }

  #call(options: CallOptions): Call {
    const headers = new Headers(options.headers);
    const { token } = this.#defaults;
    if (token && !headers.has("authorization")) headers.set("authorization", `Bearer ${token}`);
    const traceId = injectTrace(headers);
    return { headers, traceId, target: this.#target, signal: options.signal };
  }

  #prepare<I extends DescMessage, O extends DescMessage>(
    call: Call,
    method: DescMethodUnary<I, O> | DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
  ): MessageShape<I> {
    checkOptions(options, CALL_OPTIONS, "a call");
    const message = requestOf(method, request);
    const model = modelOf(message);
    if (model && !call.headers.has(MODEL)) call.headers.set(MODEL, model);
    return message;
  }

  /** As Connect takes it: 0 for none. */
  #timeout(options: CallOptions): number {
    const { timeoutMs = this.#defaults.timeoutMs } = options;
    return timeoutOf(timeoutMs);
  }
}

function timeoutOf(ms: unknown): number {
  if (ms === undefined || ms === Number.POSITIVE_INFINITY) return 0;
  if (typeof ms === "number" && ms > 0 && ms <= LONGEST_MS) return Math.ceil(ms);
  const given = typeof ms === "string" ? JSON.stringify(ms) : String(ms);
  throw invalid(
    `${given} is not 0 < timeoutMs <= ${LONGEST_MS}; Infinity is no limit`,
    "timeoutMs",
  );
}

/** When it is over, by `performance.now()`. */
function endOf(timeout: number): number {
  return performance.now() + (timeout || Number.POSITIVE_INFINITY);
}

async function* once<T>(value: T): AsyncGenerator<T> {
  yield value;
}
