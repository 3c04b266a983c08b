import assert from "node:assert/strict";
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Code, HeadraceError } from "headrace";
import { CompletionService, ModelService } from "headrace/v1";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "#dist/gen/google/rpc/error_details_pb";
import { caught, failure, open, serve } from "./server.js";

const info = (reason: string, metadata = {}, domain = "headrace.dev") => ({
  desc: ErrorInfoSchema,
  value: { reason, domain, metadata },
});

test("google.rpc.Status becomes the error, of unary calls and of streams", async (t) => {
  const full = failure(Code.ResourceExhausted, "füll – try later", [
    info("QUEUE_FULL", { queue: "model", limit: "8" }),
    { desc: RetryInfoSchema, value: { retryDelay: { seconds: 1n, nanos: 500_000_000 } } },
    {
      desc: BadRequestSchema,
      value: { fieldViolations: [{ field: "n", description: "too many" }] },
    },
  ]);
  const client = open(t, {
    target: await serve(t, (router) => {
      router.service(ModelService, {
        listModels: () => Promise.reject(full),
      });
      router.service(CompletionService, {
        async *streamCompletion() {
          yield { event: { case: "progress", value: {} } };
          throw full;
        },
      });
    }),
  });
  const stream = client.completion.streamCompletion({ model: "m" });
  for (const error of [
    await caught<HeadraceError>(client.model.listModels({})),
    await caught<HeadraceError>(async () => {
      for await (const { event } of stream) assert.equal(event.case, "progress");
    }),
  ]) {
    assert.ok(HeadraceError.is(error, "DRAINING", "QUEUE_FULL"));
    assert.ok(!HeadraceError.is(error, "DRAINING"));
    assert.equal(error.code, Code.ResourceExhausted);
    assert.equal(error.message, "füll – try later");
    assert.deepEqual({ ...error.metadata }, { queue: "model", limit: "8" });
    assert.equal(error.retryAfterMs, 1500);
    assert.deepEqual(error.violations, [{ field: "n", description: "too many" }]);
    assert.match(error.traceId, /^[0-9a-f]{32}$/);
  }
});

test("without details the code and the message are left", async (t) => {
  const errors = [
    failure(Code.PermissionDenied, "no"),
    failure(Code.Internal, "other", [info("X", {}, "elsewhere.dev")]),
    failure(Code.Internal, "RST_STREAM closed stream"),
    failure(Code.Internal, "a RST_STREAM of ours", [info("INTERNAL")]),
    failure(Code.FailedPrecondition, "new", [info("NOT_KNOWN_YET")]),
  ];
  const client = open(t, {
    target: await serve(t, ({ service }) =>
      service(ModelService, { listRunners: () => Promise.reject(errors.shift()) }),
    ),
  });
  const found = [];
  for (let left = errors.length; left > 0; left--) {
    // The third is UNAVAILABLE, and so the call is made again.
    const error = await caught<HeadraceError>(client.model.listRunners({}));
    found.push([Code[error.code], error.reason]);
    if (errors.length === 0) break;
  }
  assert.deepEqual(found, [
    ["PermissionDenied", ""],
    ["Internal", ""],
    ["Internal", "INTERNAL"],
    ["FailedPrecondition", "NOT_KNOWN_YET"],
  ]);
});

test("a stream that is cut is UNAVAILABLE, whatever HTTP/2 calls that", async (t) => {
  for (const cut of ["reset", "connection", "half"]) {
    const server = createServer();
    t.after(() => server.close());
    server.on("stream", (stream) => {
      stream.on("error", () => undefined);
      stream.respond({ ":status": 200, "content-type": "application/grpc+proto" });
      // Of a message that never comes, the first byte or none.
      stream.write(Buffer.alloc(cut === "half" ? 1 : 0), () =>
        cut === "connection" ? stream.session?.destroy() : stream.close(2),
      );
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const client = open(t, { target: `127.0.0.1:${port}` });
    const stream = client.completion.streamCompletion({ model: "m" });
    const error = await caught<HeadraceError>(async () => {
      for await (const _ of stream);
    });
    assert.deepEqual([cut, Code[error.code], error.reason], [cut, "Unavailable", ""]);
    assert.match(error.message, new RegExp(`127.0.0.1:${port}.*broke off`));
  }
});

test("nobody listens", async (t) => {
  const client = open(t, { target: "127.0.0.1:1" });
  const error = await caught<HeadraceError>(client.complete({ model: "m" }));
  assert.equal(error.code, Code.Unavailable);
  assert.match(error.message, /^127.0.0.1:1 cannot be reached.*ECONNREFUSED/);
});

test("what Protobuf cannot carry, and fields that there are not, are refused", async (t) => {
  const client = open(t, { target: "127.0.0.1:1" });
  const cases: [object, string, RegExp][] = [
    [{ model: "\ud800" }, "model", /surrogate/],
    [{ model: "m", max_tokens: 1 }, "max_tokens", /maxTokens/],
    [{ model: "m", sampling: { temprature: 1 } }, "sampling.temprature", /no such field/],
    [{ model: "m", input: { case: "promt", value: "x" } }, "promt", /no such field/],
    [{ model: "m", stop: { strings: ["ok", "\udfff"] } }, "stop.strings[1]", /surrogate/],
    [{ model: "m", maxTokens: 1.5 }, "", /max_tokens.*invalid int32/],
    [
      { model: "m", input: { case: "chat", value: { messages: [{ text: "hi" }] } } },
      "chat.messages[0].text",
      /no such field/,
    ],
  ];
  for (const [request, field, text] of cases) {
    const error = await caught<HeadraceError>(client.complete(request));
    assert.ok(HeadraceError.is(error, "INVALID_REQUEST"), String(error));
    assert.equal(error.violations[0]?.field ?? "", field);
    assert.match(error.message, text);
  }
  for (const timeoutMs of [0, -1, Number.NaN, 1e9, null, "5"] as number[]) {
    for (const call of [
      client.model.listModels({}, { timeoutMs }),
      client.complete({ model: "m" }, { timeoutMs }),
    ]) {
      const error = await caught<HeadraceError>(call);
      assert.ok(HeadraceError.is(error, "INVALID_REQUEST"));
      assert.match(error.message, /^timeoutMs: /);
    }
  }
  const misspelt: object = { timeout: 5 };
  for (const call of [
    client.model.listModels({}, misspelt),
    client.complete({ model: "m" }, misspelt),
  ]) {
    const error = await caught<HeadraceError>(call);
    assert.ok(HeadraceError.is(error, "INVALID_REQUEST"));
    assert.match(error.message, /^timeout: a call has no such option.*timeoutMs/);
  }
});
