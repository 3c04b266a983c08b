/** From the error of a transport to that of the SDK: `google.rpc.Status`, and what has none. */

import { Code, type ConnectError } from "@connectrpc/connect";
import { HeadraceError } from "./errors.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";

const DOMAIN = "headrace.dev";
const STATUS = "grpc-status";
/** What Connect says of an answer that ends in its midst, or before its status. */
const CUT =
  /^http\/2 stream closed|^protocol error: (incomplete|promised|missing status)|^missing trailer$/;

/** What is known of the call that failed. */
export interface Failed {
  readonly traceId: string;
  /** Where the server is, for people. */
  readonly target: string;
  /** The caller's own signal. */
  readonly signal: AbortSignal | undefined;
}

/** The error of a failed call. `end`: its deadline, by `performance.now()`. */
export function fromConnectError(error: ConnectError, call: Failed, end: number): HeadraceError {
  const { traceId } = call;
  if (error.metadata.has(STATUS)) return fromServer(error, traceId);
  if (call.signal?.aborted) return aborted(call.signal, traceId);
  // The server knows the deadline too, and may break the call off before a timer has fired here.
  if (error.code === Code.DeadlineExceeded || performance.now() >= end) {
    const message = "the deadline passed before the call had ended";
    return new HeadraceError(Code.DeadlineExceeded, message, { traceId, cause: error });
  }
  if (brokenOff(error)) {
    const message = `${call.target} cannot be reached, or the connection broke off: ${inWords(error)}`;
    return new HeadraceError(Code.Unavailable, message, { traceId, cause: error });
  }
  return new HeadraceError(error.code, error.rawMessage, { traceId, cause: error });
}

/** The error of a call whose caller wants it no more, or by `AbortSignal.timeout` no longer. */
export function aborted(signal: AbortSignal, traceId: string): HeadraceError {
  const cause: unknown = signal.reason;
  const late = cause instanceof Error && cause.name === "TimeoutError";
  const [code, message] = late
    ? [Code.DeadlineExceeded, "the signal's time is up"]
    : [Code.Canceled, "the call was cancelled"];
  return new HeadraceError(code, message, { traceId, cause });
}

function fromServer(error: ConnectError, traceId: string): HeadraceError {
  const info = error.findDetails(ErrorInfoSchema).find((found) => found.domain === DOMAIN);
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  // Headrace's own INTERNAL has a reason. This is how a proxy names a stream that broke off because
  // the server behind it is gone.
  const gone = !info && error.code === Code.Internal && error.rawMessage.includes("RST_STREAM");
  return new HeadraceError(gone ? Code.Unavailable : error.code, error.rawMessage, {
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    retryAfterMs: delay && Number(delay.seconds) * 1e3 + delay.nanos / 1e6,
    violations: error
      .findDetails(BadRequestSchema)
      .flatMap((bad) => bad.fieldViolations)
      .map(({ field, description }) => ({ field, description })),
    traceId,
    cause: error,
  });
}

/** Whether no server has said this: nobody listens, or the connection or the stream was cut.
 * Transports have many names for that, and gRPC has one, UNAVAILABLE. */
function brokenOff({ code, rawMessage, cause }: ConnectError): boolean {
  switch (code) {
    // No caller has cancelled, or it would have been seen by the signal.
    case Code.Canceled:
    case Code.Aborted:
    case Code.Unavailable:
      return true;
    case Code.InvalidArgument:
    case Code.Internal:
    case Code.Unknown:
      // Errors of Node's have a code, those of a browser's fetch are TypeErrors.
      if (cause instanceof Error && (cause instanceof TypeError || "code" in cause)) return true;
      return CUT.test(rawMessage);
    default:
      return false;
  }
}

function inWords(error: ConnectError): string {
  const { cause } = error;
  // Of a host with several addresses, each of which has failed; the whole has no message.
  if (cause instanceof AggregateError) {
    return cause.errors
      .map((one: unknown) => (one instanceof Error ? one.message : one))
      .join(", ");
  }
  return error.rawMessage;
}
