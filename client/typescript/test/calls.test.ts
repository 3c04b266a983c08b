import assert from "node:assert/strict";
import { before, test } from "node:test";
import { context, createTraceState, ROOT_CONTEXT, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { Code, HeadraceError, traceIdOf } from "headrace";
import { CompletionService, ModelService } from "headrace/v1";
import { caught, open, serve } from "./server.js";

before(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
});

/** A server that notes the headers of each call, and answers at once or never. */
async function noting(t: Parameters<typeof serve>[0], options: object = {}) {
  const seen: Headers[] = [];
  const target = await serve(t, (router) => {
    router.service(ModelService, {
      async getModel(_, { requestHeader }) {
        seen.push(requestHeader);
        return { model: { name: "x".repeat(30 << 20) } };
      },
      async listModels(_, { requestHeader, signal }) {
        seen.push(requestHeader);
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
        return {};
      },
      async listRunners() {
        return { queues: [{ model: "x".repeat(33 << 20) }] };
      },
    });
    router.service(CompletionService, {
      async *streamCompletion(_, { requestHeader }) {
        seen.push(requestHeader);
        yield { event: { case: "progress", value: {} } };
      },
    });
  });
  return { client: open(t, { target, ...options }), seen };
}

test("the caller's span goes along, with its state; a header of the caller's wins", async (t) => {
  const { client, seen } = await noting(t);
  const traceId = "0af7651916cd43dd8448eb211c80319c";
  const traceState = createTraceState("a=b");
  const span = { traceId, spanId: "b7ad6b7169203331", traceFlags: 0, traceState };
  const answer = await context.with(trace.setSpanContext(ROOT_CONTEXT, span), () =>
    client.model.getModel({ model: "m" }),
  );
  assert.equal(seen[0]?.get("traceparent"), `00-${traceId}-b7ad6b7169203331-00`);
  assert.equal(seen[0]?.get("tracestate"), "a=b");
  assert.equal(traceIdOf(answer), traceId);
  const own = `00-${"1".repeat(32)}-${"2".repeat(16)}-01`;
  const other = await client.model.getModel({ model: "m" }, { headers: { traceparent: own } });
  assert.equal(seen[1]?.get("traceparent"), own);
  assert.equal(traceIdOf(other), "1".repeat(32));
});

test("without a span each call has a trace of its own, and tells it", async (t) => {
  const { client, seen } = await noting(t);
  const answer = await client.model.getModel({ model: "m" });
  const stream = client.completion.streamCompletion({ model: "m" });
  for await (const message of stream) assert.equal(traceIdOf(message), traceIdOf(stream));
  const sent = seen.map((headers) => headers.get("traceparent") ?? "");
  assert.match(sent[0] ?? "", /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
  assert.deepEqual(
    sent.map((header) => header.split("-")[1]),
    [traceIdOf(answer), traceIdOf(stream)],
  );
  assert.notEqual(traceIdOf(answer), traceIdOf(stream));
  assert.equal(traceIdOf({}), "");
});

test("the model is a header where it can be one; the token always is", async (t) => {
  const { client, seen } = await noting(t, { token: "hr_x" });
  await client.model.getModel({ model: "smollm2:135m" });
  await client.model.getModel({ model: "größe" });
  await client.model.getModel({ model: "" });
  for await (const _ of client.completion.streamCompletion({ model: "a b" }));
  assert.deepEqual(
    seen.map((headers) => headers.get("headrace-model")),
    ["smollm2:135m", null, null, "a b"],
  );
  for (const headers of seen) assert.equal(headers.get("authorization"), "Bearer hr_x");
});

test("a call's own headers win", async (t) => {
  const { client, seen } = await noting(t, { token: "hr_x" });
  const headers = {
    authorization: "Bearer hr_other",
    traceparent: `00-${"1".repeat(32)}-${"2".repeat(16)}-00`,
    "headrace-model": "another",
  };
  await client.model.getModel({ model: "m" }, { headers });
  for await (const _ of client.completion.streamCompletion({ model: "m" }, { headers }));
  assert.equal(seen.length, 2);
  for (const got of seen) {
    for (const [name, own] of Object.entries(headers)) assert.equal(got.get(name), own);
  }
});

test("the client's deadline, and a call's own", async (t) => {
  const { client, seen } = await noting(t, { timeoutMs: 2500 });
  // It connects here, so that the others arrive within their time.
  await client.model.getModel({ model: "m" }, { timeoutMs: Number.POSITIVE_INFINITY });
  const errors = await Promise.all([
    caught<HeadraceError>(client.model.listModels({}, { timeoutMs: 1000 })),
    caught<HeadraceError>(client.model.listModels({})),
  ]);
  assert.deepEqual(
    errors.map(({ code }) => code),
    [Code.DeadlineExceeded, Code.DeadlineExceeded],
  );
  const [none, ...sent] = seen.map((headers) => headers.get("grpc-timeout"));
  assert.equal(none, null);
  const [own = 0, general = 0] = sent
    .map((ms) => Number(ms?.replace(/m$/, "")))
    .sort((a, b) => a - b);
  assert.ok(own > 0 && own <= 1000 && general > 1000 && general <= 2500, String(sent));
});

test("a signal cancels, and AbortSignal.timeout is a deadline", async (t) => {
  const { client } = await noting(t);
  const ends = [AbortSignal.abort(), AbortSignal.abort("mine"), AbortSignal.timeout(50)];
  const codes = [];
  for (const signal of ends) {
    const error = await caught<HeadraceError>(client.model.listModels({}, { signal }));
    codes.push(error.code);
  }
  assert.deepEqual(codes, [Code.Canceled, Code.Canceled, Code.DeadlineExceeded]);
});

test("messages of 30 MiB come, and none of more than 32", async (t) => {
  const { client } = await noting(t);
  const { model } = await client.model.getModel({ model: "m" });
  assert.equal(model?.name.length, 30 << 20);
  const error = await caught<HeadraceError>(client.model.listRunners({}));
  assert.equal(error.code, Code.ResourceExhausted);
});

test("a request of more than 32 MiB is not sent, and other calls go on", async (t) => {
  const { client, seen } = await noting(t);
  const waiting = new AbortController();
  const other = caught<HeadraceError>(client.model.listModels({}, { signal: waiting.signal }));
  const model = "x".repeat(32 << 20);
  const headers = { "headrace-model": "m" }; // No header carries that name.
  for (const error of [
    await caught<HeadraceError>(client.model.getModel({ model }, { headers })),
    await caught<HeadraceError>(client.complete({ model }, { headers })),
  ]) {
    assert.ok(HeadraceError.is(error));
    assert.deepEqual([error.code, error.reason], [Code.ResourceExhausted, ""]);
    assert.match(error.message, /at most 33554432/);
  }
  await client.model.getModel({ model: "m" });
  assert.equal(seen.length, 2);
  waiting.abort();
  assert.equal((await other).code, Code.Canceled);
  // The field's tag and its length take five bytes: this is the largest that there is.
  await client.model.getModel({ model: model.slice(5) }, { headers });
});
