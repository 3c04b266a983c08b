import assert from "node:assert/strict";
import { test } from "node:test";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, HeadraceError } from "headrace";
import {
  CompletionService,
  FinishReason,
  ModelService,
  type StreamCompletionResponseSchema,
} from "headrace/v1";
import { Client } from "headrace/web";
import { ErrorInfoSchema } from "#dist/gen/google/rpc/error_details_pb";
import { caught, failure, serveWeb } from "./server.js";

type Event = NonNullable<MessageInitShape<typeof StreamCompletionResponseSchema>["event"]>;

test("calls and streams by gRPC-Web", async (t) => {
  const value = { domain: "headrace.dev", reason: "MODEL_NOT_FOUND", metadata: { nearest: "m" } };
  const client = new Client({
    token: "hr_x",
    target: await serveWeb(t, (router) => {
      router.service(ModelService, {
        async getModel() {
          throw failure(Code.NotFound, "no", [{ desc: ErrorInfoSchema, value }]);
        },
      });
      router.service(CompletionService, {
        async *streamCompletion(_, { requestHeader }): AsyncGenerator<{ event: Event }> {
          yield { event: { case: "started", value: {} } };
          const text = requestHeader.get("authorization") ?? "";
          yield { event: { case: "delta", value: { text } } };
          const finishReason = FinishReason.STOP;
          yield { event: { case: "completed", value: { choices: [{ finishReason }] } } };
        },
      });
    }),
  });
  const whole = await client.complete({ model: "m" });
  assert.deepEqual([whole.text, whole.finishReason], ["Bearer hr_x", FinishReason.STOP]);
  const error = await caught<HeadraceError>(client.model.getModel({ model: "x" }));
  assert.ok(HeadraceError.is(error, "MODEL_NOT_FOUND"));
  assert.equal(error.metadata.nearest, "m");
});

test("a server that cannot be reached is UNAVAILABLE", async () => {
  const client = new Client({ target: "http://127.0.0.1:9" });
  const error = await caught<HeadraceError>(client.complete({ model: "m" }));
  assert.deepEqual([error.code, error.reason], [Code.Unavailable, ""]);
});

test("what is no server, and a token in the clear, are refused", () => {
  for (const options of [
    {},
    { target: "localhost:8443" },
    { target: "http://models.local", token: "hr_x" },
    { target: "https://models.local", timeoutMs: 0 },
    { target: "https://models.local", tls: {} },
  ]) {
    assert.throws(
      () => new Client(options),
      (error) => HeadraceError.is(error, "INVALID_REQUEST"),
    );
  }
});
