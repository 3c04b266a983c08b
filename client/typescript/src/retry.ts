/** When a unary call is made again. Pure, but for the pause. */

import { Code, type ConnectError } from "@connectrpc/connect";

const ATTEMPTS = 4;
const FIRST_MS = 100;
const PUSHBACK = "grpc-retry-pushback-ms";

/** Milliseconds until the next attempt; undefined: there is none.
 *
 * @param code - how the attempt ended
 * @param cause - the transport's own error, whose metadata may say more
 * @param made - attempts so far
 * @param random - 0 to 1, for the jitter of a fifth
 */
export function nextAttempt(
  code: Code,
  cause: ConnectError,
  made: number,
  random = Math.random(),
): number | undefined {
  if (code !== Code.Unavailable || made >= ATTEMPTS) return undefined;
  const pushback = cause.metadata.get(PUSHBACK);
  // Whatever is no number of milliseconds asks for no other attempt, as in gRPC.
  if (pushback !== null) return /^\d+$/.test(pushback) ? Number(pushback) : undefined;
  return FIRST_MS * 2 ** (made - 1) * (0.8 + 0.4 * random);
}

/** Waits, or until the signal says otherwise. */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal?.aborted) return;
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
