/** The one error of the SDK. */

import { Code } from "@connectrpc/connect";
import type { ErrorReason } from "./gen/headrace/v1/errors_pb.js";

/** Why a call failed: a name of `ErrorReason`. Servers newer than this SDK may know others. */
export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** A field of the request that breaks a rule. */
export interface FieldViolation {
  /** Path in the request, as the contract writes it: `sampling.temperature`, `stop.strings[2]`. */
  readonly field: string;
  /** The rule, in words. */
  readonly description: string;
}

/** What may be known of an error beside its code and message. */
export interface ErrorDetails {
  /** See `HeadraceError.reason`. */
  reason?: string;
  /** See `HeadraceError.metadata`. */
  metadata?: Readonly<Record<string, string>>;
  /** See `HeadraceError.retryAfterMs`. */
  retryAfterMs?: number | undefined;
  /** See `HeadraceError.violations`. */
  violations?: readonly FieldViolation[];
  /** See `HeadraceError.traceId`. */
  traceId?: string;
  /** What it was made of. */
  cause?: unknown;
}

/** Every failure of a call, and every argument that the SDK refuses. `message` says what happened
 * and what to do about it. */
export class HeadraceError extends Error {
  override readonly name = "HeadraceError";
  /** gRPC's status code. */
  readonly code: Code;
  /** The contract's reason, such as "QUEUE_FULL"; empty if the server gave none. */
  readonly reason: Reason | "" | (string & {});
  /** The keys that the contract documents for the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which a new try makes sense; undefined if the server did not say. */
  readonly retryAfterMs: number | undefined;
  /** The fields at fault. */
  readonly violations: readonly FieldViolation[];
  /** The trace to look for in the services' logs; empty where nothing was sent. */
  readonly traceId: string;

  constructor(code: Code, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.reason = details.reason ?? "";
    this.metadata = Object.freeze({ ...details.metadata });
    this.retryAfterMs = details.retryAfterMs;
    this.violations = Object.freeze([...(details.violations ?? [])]);
    this.traceId = details.traceId ?? "";
  }

  /** Whether `error` is one of Headrace, and for one of these reasons if any are given. */
  static is(error: unknown): error is HeadraceError;
  static is<R extends Reason>(
    error: unknown,
    ...reasons: [R, ...R[]]
  ): error is HeadraceError & { readonly reason: R };
  static is(error: unknown, ...reasons: string[]): boolean {
    if (!(error instanceof HeadraceError)) return false;
    return reasons.length === 0 || reasons.includes(error.reason);
  }
}

/** The error of an argument that is refused before anything is sent. */
export function invalid(message: string, field = "", cause?: unknown): HeadraceError {
  const violations = field ? [{ field, description: message }] : [];
  return new HeadraceError(Code.InvalidArgument, field ? `${field}: ${message}` : message, {
    reason: "INVALID_REQUEST",
    violations,
    cause,
  });
}
