/** When a unary call is made again. Pure, but for the pause. */

import type { DescMethod } from "@bufbuild/protobuf";
import { Code, type ConnectError } from "@connectrpc/connect";
import { Health } from "./gen/grpc/health/v1/health_pb.js";
import { EmbeddingService } from "./gen/headrace/v1/embedding_pb.js";
import { ModelService } from "./gen/headrace/v1/model_pb.js";
import { RunnerService } from "./gen/headrace/v1/runner_pb.js";
import { ScoreService } from "./gen/headrace/v1/score_pb.js";
import { TokenizeService } from "./gen/headrace/v1/tokenize_pb.js";

const ATTEMPTS = 4;
const FIRST_MS = 100;
/** What a timer has room for, 24 days; it takes more for nothing. */
const LONGEST_MS = 2 ** 31 - 1;
const PUSHBACK = "grpc-retry-pushback-ms";

/** What may be sent twice. What changes the store is left out: the first attempt may have reached the
 * server, and a second would fail for what it has done. */
const REPEATABLE = new Set(
  [
    ...EmbeddingService.methods,
    ...Health.methods,
    ...RunnerService.methods,
    ...ScoreService.methods,
    ...TokenizeService.methods,
    ModelService.method.getModel,
    ModelService.method.listModels,
    ModelService.method.listRunners,
    ModelService.method.loadModel,
    ModelService.method.unloadModel,
  ].map(pathOf),
);

/** Whether a unary call of this method may be made again. */
export function isRepeatable(method: DescMethod): boolean {
  return REPEATABLE.has(pathOf(method));
}

/** So that stubs which somebody else has generated are known too. */
function pathOf({ parent, name }: DescMethod): string {
  return `${parent.typeName}/${name}`;
}

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
    const timer = setTimeout(end, Math.min(ms, LONGEST_MS));
    signal?.addEventListener("abort", end);
  });
}
