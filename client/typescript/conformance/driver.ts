/** The conformance driver: see tests/conformance/README.md. A JSON object a line, each answered. */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import {
  type DescMethod,
  fromJson,
  type JsonObject,
  type JsonValue,
  type Message,
  toJson,
} from "@bufbuild/protobuf";
import { context, ROOT_CONTEXT, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { type CallOptions, Client, Code, HeadraceError, traceIdOf } from "headrace/node";
import {
  CompletionService,
  EmbeddingService,
  FinishReasonSchema,
  Health,
  ImageService,
  ModelService,
  RunnerService,
  ScoreService,
  StreamCompletionRequestSchema,
  StreamImageRequestSchema,
  TokenizeService,
} from "headrace/v1";

const SERVICES = [
  CompletionService,
  EmbeddingService,
  Health,
  ImageService,
  ModelService,
  RunnerService,
  ScoreService,
  TokenizeService,
];

/** One thing to do. */
interface Command {
  do: "connect" | "call" | "complete" | "draw";
  target?: string;
  token?: string;
  ca?: string;
  cert?: string;
  key?: string;
  timeout?: number;
  method?: string;
  request?: JsonObject;
  cancel_after?: number;
  traceparent?: string;
  headers?: Record<string, string>;
}

type Stub = (request: Message, options: CallOptions) => Promise<Message> | AsyncIterable<Message>;

let client: Client | undefined;

function connect({ target, token, ca, cert, key, timeout }: Command): object {
  client?.close();
  client = undefined;
  const files = { ca: read(ca), cert: read(cert), key: read(key) };
  client = new Client({
    target,
    token,
    tls: ca || cert || key ? files : undefined,
    timeoutMs: timeout && timeout * 1000,
  });
  return {};
}

function read(path: string | undefined): string | undefined {
  return path === undefined ? undefined : readFileSync(path, "utf8");
}

async function call(command: Command): Promise<object> {
  const method = methodOf(command.method ?? "");
  const stubs = opened().stubs(method.parent) as unknown as Record<string, Stub>;
  const request = fromJson(method.input, command.request ?? {}) as Message;
  const abort = new AbortController();
  const options = { ...optionsOf(command), signal: abort.signal };
  const messages: JsonValue[] = [];
  let traceId = "";
  try {
    const answer = stubs[method.localName]?.(request, options);
    if (answer === undefined) throw new Error(`no stub for ${command.method}`);
    if (!(Symbol.asyncIterator in answer)) {
      const message = await answer;
      traceId = traceIdOf(message);
      messages.push(toJson(method.output, message));
    } else {
      traceId = traceIdOf(answer);
      for await (const message of answer) {
        messages.push(toJson(method.output, message));
        if (messages.length === command.cancel_after) abort.abort();
      }
    }
    return { messages, trace_id: traceId, error: null };
  } catch (error) {
    return { messages, trace_id: traceId, ...failure(error) };
  }
}

function methodOf(path: string): DescMethod {
  const [, service, name] = path.split("/");
  const found = SERVICES.find(({ typeName }) => typeName === service);
  const method = found?.methods.find((one) => one.name === name);
  if (!method) throw new Error(`there is no method ${path}`);
  return method;
}

async function complete(command: Command): Promise<object> {
  const request = fromJson(StreamCompletionRequestSchema, command.request ?? {});
  const stream = opened().streamCompletion(request, optionsOf(command));
  try {
    const whole = await stream.collect();
    return {
      text: whole.text,
      token_ids: whole.tokenIds,
      finish_reason: FinishReasonSchema.value[whole.finishReason]?.name,
      input_tokens: whole.usage?.promptTokens ?? 0,
      output_tokens: whole.usage?.outputTokens ?? 0,
      resumes: whole.resumes,
      trace_id: whole.traceId,
      error: null,
    };
  } catch (error) {
    return { trace_id: stream.traceId, ...failure(error) };
  }
}

async function draw(command: Command): Promise<object> {
  const request = fromJson(StreamImageRequestSchema, command.request ?? {});
  const stream = opened().streamImage(request, optionsOf(command));
  try {
    const { images, traceId } = await stream.collect();
    return {
      images: images.map(({ data, result }) => ({
        sha256: createHash("sha256").update(data).digest("hex"),
        bytes: data.length,
        media_type: result.mediaType,
      })),
      trace_id: traceId,
      error: null,
    };
  } catch (error) {
    return { trace_id: stream.traceId, ...failure(error) };
  }
}

function opened(): Client {
  if (!client) throw new Error("connect first");
  return client;
}

function optionsOf({ timeout, headers }: Command): CallOptions {
  return {
    ...(timeout !== undefined && { timeoutMs: timeout * 1000 }),
    ...(headers && { headers }),
  };
}

/** The error as the SDK's user sees it. Anything else is a bug of the SDK, or of this. */
function failure(error: unknown): { error: object; trace_id?: string } {
  if (!(error instanceof HeadraceError)) throw error;
  const { code, reason, message, metadata, retryAfterMs, violations, traceId } = error;
  const name = Code[code].replace(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase();
  return {
    error: {
      // Connect spells it otherwise than gRPC.
      code: code === Code.Canceled ? "CANCELLED" : name,
      reason,
      message,
      metadata,
      retry_after: retryAfterMs === undefined ? null : retryAfterMs / 1000,
      violations,
    },
    ...(traceId && { trace_id: traceId }),
  };
}

/** Within a span of the caller's trace, if there is one. */
async function within<T>(traceparent: string | undefined, run: () => Promise<T>): Promise<T> {
  if (!traceparent) return await run();
  const [, traceId = "", spanId = "", flags = ""] = traceparent.split("-");
  const span = { traceId, spanId, traceFlags: Number.parseInt(flags, 16) };
  return await context.with(trace.setSpanContext(ROOT_CONTEXT, span), run);
}

async function carryOut(command: Command): Promise<object> {
  switch (command.do) {
    case "connect":
      try {
        return connect(command);
      } catch (error) {
        return failure(error);
      }
    case "call":
      return await call(command);
    case "complete":
      return await complete(command);
    case "draw":
      return await draw(command);
  }
}

for (const name of Object.keys(process.env)) {
  if (name.startsWith("HEADRACE_")) delete process.env[name];
}
context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line) as Command;
  const answer = await within(command.traceparent, () => carryOut(command));
  console.log(JSON.stringify(answer));
}
client?.close();
