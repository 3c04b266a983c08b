import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { test } from "node:test";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, type HeadraceError } from "headrace";
import {
  CompletionService,
  FinishReason,
  ImageService,
  type StreamCompletionResponseSchema,
  type StreamImageResponseSchema,
} from "headrace/v1";
import { caught, open, serve } from "./server.js";

type Event = NonNullable<MessageInitShape<typeof StreamCompletionResponseSchema>["event"]>;
type ImageEvent = NonNullable<MessageInitShape<typeof StreamImageResponseSchema>["event"]>;

const started: Event = { case: "started", value: { id: "r", seed: 7n } };
const completed = (...reasons: FinishReason[]): Event => ({
  case: "completed",
  value: {
    choices: reasons.map((finishReason, index) => ({ index, finishReason })),
    usage: { promptTokens: 3, outputTokens: 2 },
    resumed: 1,
  },
});
/** The end of just these choices. */
const ending = (...indices: number[]): Event => ({
  case: "completed",
  value: { choices: indices.map((index) => ({ index, finishReason: FinishReason.STOP })) },
});
const delta = (text: string, more: object = {}): Event => ({
  case: "delta",
  value: { text, ...more },
});

async function telling(t: Parameters<typeof serve>[0], events: Event[], hang = false) {
  let left = () => {};
  const gone = new Promise<void>((resolve) => {
    left = resolve;
  });
  const target = await serve(t, ({ service }) =>
    service(CompletionService, {
      async *streamCompletion(_, { signal }) {
        signal.addEventListener("abort", left);
        for (const event of events) yield { event };
        if (hang) await gone;
      },
    }),
  );
  return { client: open(t, { target }), gone, target };
}

test("a completion is put together, every choice of it", async (t) => {
  const { client } = await telling(t, [
    { case: "progress", value: { queuePosition: 1 } },
    started,
    delta("a", { tokenIds: [1], reasoning: "hm" }),
    delta("x", { choice: 1, tokenIds: [9] }),
    delta("b", {
      tokenIds: [2],
      toolCalls: [
        { index: 0, id: "c0", name: "f", argumentsJson: "{" },
        { index: 0, argumentsJson: "}" },
        { index: 1, name: "g", argumentsJson: "{" },
      ],
    }),
    completed(FinishReason.LENGTH, FinishReason.STOP),
  ]);
  const whole = await client.complete({ model: "m", n: 2 });
  assert.deepEqual([whole.text, whole.reasoning, whole.tokenIds], ["ab", "hm", [1, 2]]);
  assert.deepEqual(whole.toolCalls, [
    { id: "c0", name: "f", argumentsJson: "{}" },
    { id: "", name: "g", argumentsJson: "{" },
  ]);
  assert.deepEqual([whole.finishReason, whole.resumes], [FinishReason.LENGTH, 1]);
  assert.deepEqual([whole.usage?.outputTokens, whole.started.seed], [2, 7n]);
  const second = whole.choices[1];
  assert.deepEqual([second?.text, second?.finishReason], ["x", FinishReason.STOP]);
  assert.match(whole.traceId, /^[0-9a-f]{32}$/);
});

test("text comes as it is made, and the whole has what was read before", async (t) => {
  const { client } = await telling(t, [started, delta("a"), delta(""), delta("b"), completed(1)]);
  const stream = client.streamCompletion({ model: "m" });
  const pieces = [];
  for await (const piece of stream.text()) pieces.push(piece);
  assert.deepEqual(pieces, ["a", "b"]);
  assert.equal((await stream.collect()).text, "ab");
});

test("a stream without its end is an error, and so is one that breaks the contract", async (t) => {
  const part = { index: 1, argumentsJson: "{" };
  for (const [events, code, text] of [
    [[started, delta("a")], Code.Internal, /without being completed/],
    [[], Code.Internal, /without being completed/],
    [[delta("a")], Code.Internal, /before it had started/],
    [[completed(1)], Code.Internal, /before it had started/],
    [[started, started], Code.Internal, /started twice/],
    [[started, completed(1), delta("a")], Code.Internal, /went on/],
    [[started, delta("", { toolCalls: [part] }), completed(1)], Code.Internal, /tool call/],
    [[started, delta("a", { choice: 1 }), completed(1)], Code.Internal, /not asked for/],
    [[started, delta("a", { choice: -1 }), completed(1)], Code.Internal, /not asked for/],
    [[started, delta("a"), completed()], Code.Internal, /other choices than the 1/],
    [[started, delta("a"), completed(1, 1)], Code.Internal, /other choices than the 1/],
    [[started, delta("a"), ending(1)], Code.Internal, /other choices than the 1/],
  ] as [Event[], Code, RegExp][]) {
    const { client } = await telling(t, events);
    const stream = client.streamCompletion({ model: "m" });
    const error = await caught<HeadraceError>(stream.collect());
    assert.deepEqual([error.code, error.reason, error.traceId], [code, "", stream.traceId]);
    assert.match(error.message, text);
    // It stays an error.
    assert.equal(await caught(stream.collect()), error);
  }
});

test("a stream of two choices ends with both", async (t) => {
  for (const indices of [[], [0], [0, 0], [1, 0], [0, 1, 2]]) {
    const { client } = await telling(t, [started, delta("a"), ending(...indices)]);
    const error = await caught<HeadraceError>(client.complete({ model: "m", n: 2 }));
    assert.deepEqual([indices, error.code, error.reason], [indices, Code.Internal, ""]);
  }
  const { client } = await telling(t, [started, delta("b", { choice: 1 }), ending(0, 1)]);
  const { choices } = await client.complete({ model: "m", n: 2 });
  assert.deepEqual(
    choices.map(({ text }) => text),
    ["", "b"],
  );
});

test("leaving a stream ends the call, by the helper and by the stub", async (t) => {
  const one = await telling(t, [started, delta("a")], true);
  const stream = one.client.streamCompletion({ model: "m" });
  for await (const { event } of stream) if (event.case === "delta") break;
  await one.gone;
  assert.equal((await caught<HeadraceError>(stream.collect())).code, Code.Canceled);
  const two = await telling(t, [started, delta("a")], true);
  for await (const _ of two.client.completion.streamCompletion({ model: "m" })) break;
  await two.gone;
});

test("a stream that was left keeps no process alive until its deadline", async (t) => {
  const { target } = await telling(t, [started], true);
  const program = `import { Client } from "headrace/node";
    const client = new Client({ target: "${target}" });
    const stream = client.streamCompletion({ model: "m" }, { timeoutMs: 3600_000 });
    for await (const _ of stream) break;`;
  const options = { stdio: "inherit", signal: t.signal } as const;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", program], options);
  assert.deepEqual(await once(child, "exit"), [0, null]);
});

test("cancel() ends the call under who waits for an event", async (t) => {
  const { client, gone } = await telling(t, [started], true);
  const stream = client.streamCompletion({ model: "m" });
  const error = await caught<HeadraceError>(async () => {
    for await (const _ of stream) setImmediate(() => stream.cancel());
  });
  assert.equal(error.code, Code.Canceled);
  await gone;
});

test("a stream that nobody reads makes no call", async (t) => {
  const { client } = await telling(t, [started, completed(1)]);
  client.streamCompletion({ model: "\ud800" });
  const unread = client.streamCompletion({ model: "m" });
  unread.cancel();
  assert.equal((await caught<HeadraceError>(unread.collect())).code, Code.Canceled);
});

const file = Buffer.from("a picture");
const sha256 = createHash("sha256").update(file).digest("hex");
const begun: ImageEvent = { case: "started", value: { seed: 7n } };
const chunk = (offset: number, data: Uint8Array, index = 0): ImageEvent => ({
  case: "chunk",
  value: { index, offset: BigInt(offset), data },
});
const drawn = (...sums: string[]): ImageEvent => ({
  case: "completed",
  value: { images: sums.map((sum, index) => ({ index, sha256: sum, mediaType: "image/png" })) },
});

async function drawing(t: Parameters<typeof serve>[0], events: ImageEvent[]) {
  const target = await serve(t, ({ service }) =>
    service(ImageService, {
      async *streamImage() {
        for (const event of events) yield { event };
      },
    }),
  );
  return open(t, { target });
}

test("images are put together, and held against their checksums", async (t) => {
  const client = await drawing(t, [
    begun,
    chunk(0, file.subarray(0, 4)),
    chunk(0, file, 1),
    chunk(4, file.subarray(4)),
    drawn(sha256, sha256),
  ]);
  const { images, traceId } = await client.draw({ model: "m", prompt: "p", count: 2 });
  assert.deepEqual(
    images.map(({ data, result }) => [String(Buffer.from(data)), result.mediaType]),
    [
      ["a picture", "image/png"],
      ["a picture", "image/png"],
    ],
  );
  assert.match(traceId, /^[0-9a-f]{32}$/);
});

test("images that are damaged, or not those that were asked for, are none", async (t) => {
  const whole = chunk(0, file);
  for (const [events, code] of [
    [[begun, chunk(0, Buffer.from("a pictura")), drawn(sha256)], Code.DataLoss],
    [[begun, drawn(sha256)], Code.DataLoss],
    [[begun, chunk(0, file.subarray(0, 4)), chunk(5, file), drawn(sha256)], Code.Internal],
    [[begun, whole, chunk(0, file, 1), drawn(sha256, sha256)], Code.Internal],
    [[begun, whole, chunk(0, file, 3), drawn(sha256)], Code.Internal],
    [[whole], Code.Internal],
    [[begun, begun], Code.Internal],
    [[begun, whole], Code.Internal],
  ] as [ImageEvent[], Code][]) {
    const client = await drawing(t, events);
    const error = await caught<HeadraceError>(client.draw({ model: "m", prompt: "p" }));
    assert.deepEqual([Code[error.code], error.reason], [Code[code], ""]);
    assert.match(error.traceId, /^[0-9a-f]{32}$/);
  }
});
