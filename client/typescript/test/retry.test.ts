import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay, setImmediate } from "node:timers/promises";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { Code, type HeadraceError } from "headrace";
import type { ClientOptions } from "headrace/node";
import {
  CompletionService,
  EmbeddingService,
  Health,
  ImageService,
  ModelService,
  RunnerService,
  ScoreService,
  TokenizeService,
} from "headrace/v1";
import { nextAttempt, pause } from "#dist/retry";
import { caught, failure, open, serve } from "./server.js";

const unavailable = (pushback?: string) =>
  failure(
    Code.Unavailable,
    "away",
    [],
    pushback === undefined ? {} : { "grpc-retry-pushback-ms": pushback },
  );

/** A server that fails so many times, and how often it was asked. */
async function failing(
  t: Parameters<typeof serve>[0],
  times: number,
  error: ConnectError,
  options: ClientOptions = {},
) {
  const asked: (string | null)[] = [];
  const target = await serve(t, (router) => {
    router.service(ModelService, {
      async listModels(_, { requestHeader }) {
        asked.push(requestHeader.get("grpc-timeout"));
        if (asked.length <= times) throw error;
        return {};
      },
    });
    router.service(CompletionService, {
      // biome-ignore lint/correctness/useYield: it fails before its first message
      async *streamCompletion() {
        asked.push(null);
        throw error;
      },
    });
  });
  return { client: open(t, { target, ...options }), asked };
}

test("a unary call is made four times, and each is told what is left", async (t) => {
  const { client, asked } = await failing(t, 3, unavailable());
  const begin = performance.now();
  await client.model.listModels({}, { timeoutMs: 20_000 });
  const passed = performance.now() - begin;
  assert.equal(asked.length, 4);
  assert.ok(passed >= 0.8 * 700, `${passed} ms`);
  const left = asked.map((header) => Number(header?.replace(/m$/, "")));
  const [first = 0, , , last = 0] = left;
  assert.ok(first <= 20_000 && last > 0 && first - last >= 0.8 * 700 - 1, String(left));
});

test("not a fifth time, and no other code", async (t) => {
  const away = await failing(t, 9, unavailable());
  const error = await caught<HeadraceError>(away.client.model.listModels({}));
  assert.deepEqual([error.code, away.asked.length], [Code.Unavailable, 4]);
  const wrong = await failing(t, 9, failure(Code.ResourceExhausted, "full"));
  await caught(wrong.client.model.listModels({}));
  assert.equal(wrong.asked.length, 1);
});

test("the server may forbid another attempt, or name its time", async (t) => {
  const never = await failing(t, 1, unavailable("-1"));
  await caught(never.client.model.listModels({}));
  assert.equal(never.asked.length, 1);
  const later = await failing(t, 1, unavailable("900"));
  const begin = performance.now();
  await later.client.model.listModels({});
  const passed = performance.now() - begin;
  assert.ok(passed >= 890, `${passed} ms`);
  assert.equal(later.asked.length, 2);
});

test("never past the deadline, nor after the caller has gone", async (t) => {
  const late = await failing(t, 9, unavailable("60000"));
  const error = await caught<HeadraceError>(
    late.client.model.listModels({}, { timeoutMs: 20_000 }),
  );
  assert.deepEqual([error.code, late.asked.length], [Code.Unavailable, 1]);
  let heard = () => {};
  const failed = new Promise<void>((resolve) => {
    heard = resolve;
  });
  const interceptor: Interceptor = (next) => (request) => next(request).finally(heard);
  const gone = await failing(t, 9, unavailable("60000"), { interceptors: [interceptor] });
  const abort = new AbortController();
  const waiting = caught<HeadraceError>(gone.client.model.listModels({}, { signal: abort.signal }));
  await failed;
  await setImmediate(); // Now it waits for the next attempt.
  abort.abort();
  assert.equal((await waiting).code, Code.Canceled);
  assert.equal(gone.asked.length, 1);
});

test("what changes the store is never sent twice, and all other unary calls are", async (t) => {
  const asked = new Map<string, number>();
  const services = [
    ...[CompletionService, EmbeddingService, ImageService, ModelService],
    ...[RunnerService, ScoreService, TokenizeService, Health],
  ];
  const target = await serve(t, (router) => {
    for (const service of services) {
      const refuse = ({ name }: DescMethod) => {
        asked.set(name, (asked.get(name) ?? 0) + 1);
        throw unavailable("1");
      };
      const each = service.methods.map((method) => [method.localName, () => refuse(method)]);
      router.service(service as DescService, Object.fromEntries(each));
    }
  });
  const client = open(t, { target });
  for (const service of services) {
    const stubs = client.stubs(service as DescService) as Record<
      string,
      (request: object) => never
    >;
    for (const { localName, methodKind } of service.methods) {
      const call = async () => await stubs[localName]?.({});
      if (methodKind === "unary")
        assert.equal((await caught<HeadraceError>(call)).code, Code.Unavailable);
    }
  }
  const once = [...asked].filter(([, times]) => times === 1).map(([name]) => name);
  assert.deepEqual(once, ["CopyModel", "DeleteModel", "CollectGarbage"]);
  assert.deepEqual([...new Set(asked.values())].sort(), [1, 4]);
});

test("a stream is never made again", async (t) => {
  const { client, asked } = await failing(t, 1, unavailable());
  const error = await caught<HeadraceError>(client.complete({ model: "m" }));
  assert.deepEqual([error.code, asked.length], [Code.Unavailable, 1]);
});

test("waits double, with a fifth of jitter", () => {
  const bare = new ConnectError("", Code.Unavailable);
  const waits = (random: number) =>
    [1, 2, 3, 4].map((made) => nextAttempt(Code.Unavailable, bare, made, random));
  assert.deepEqual(waits(0.5), [100, 200, 400, undefined]);
  assert.deepEqual(waits(0), [80, 160, 320, undefined]);
  assert.equal(nextAttempt(Code.Unavailable, unavailable("soon"), 1), undefined);
  assert.equal(nextAttempt(Code.Unavailable, unavailable("7"), 4), undefined);
});

test("a wait that is too long for a timer does not end at once", async () => {
  const abort = new AbortController();
  for (const ms of [2 ** 31, Number.POSITIVE_INFINITY]) {
    const waiting = pause(ms, abort.signal).then(() => "over");
    assert.equal(await Promise.race([waiting, delay(20, "still waiting")]), "still waiting");
  }
  abort.abort();
});
