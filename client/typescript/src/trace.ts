/** Ties each call to a trace: the caller's current span, else one that is made for the call. */

import { context, isSpanContextValid, trace } from "@opentelemetry/api";

const PARENT = "traceparent";
const STATE = "tracestate";
const ids = new WeakMap<object, string>();

/** Puts a trace context into the headers, unless one is there; gives its trace id. */
export function injectTrace(headers: Headers): string {
  const given = headers.get(PARENT);
  if (given !== null) return given.split("-")[1] ?? "";
  const span = trace.getSpanContext(context.active());
  if (span && isSpanContextValid(span)) {
    const flags = span.traceFlags.toString(16).padStart(2, "0");
    headers.set(PARENT, `00-${span.traceId}-${span.spanId}-${flags}`);
    const state = span.traceState?.serialize();
    if (state) headers.set(STATE, state);
    return span.traceId;
  }
  const id = randomHex(16);
  // Flag 01: the services may record the trace; whether they do is their setting.
  headers.set(PARENT, `00-${id}-${randomHex(8)}-01`);
  return id;
}

/** Notes the trace of what a call has given. */
export function note<T extends object>(value: T, traceId: string): T {
  ids.set(value, traceId);
  return value;
}

/** The trace id of the call that this came of, 32 hexadecimal digits: a response, a message of a
 * stream, or the stream of a stub. Empty for anything else. */
export function traceIdOf(value: object): string {
  return ids.get(value) ?? "";
}

function randomHex(bytes: number): string {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
