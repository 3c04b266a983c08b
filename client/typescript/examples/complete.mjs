// Streams an answer, and tells what came of it.
//
//   node examples/complete.mjs smollm2:135m "Tell me about the sea."

import { Client, Code, HeadraceError } from "headrace/node";
import { ChatRole, FinishReason } from "headrace/v1";

const [model = "smollm2:135m", prompt = "Tell me about the sea."] = process.argv.slice(2);
const client = new Client({ timeoutMs: 120_000 });
const stream = client.streamCompletion({
  model,
  input: { case: "chat", value: { messages: [{ role: ChatRole.USER, content: prompt }] } },
  maxTokens: 32,
});
try {
  for await (const text of stream.text()) process.stdout.write(text);
  const { finishReason, usage, traceId } = await stream.collect();
  console.log(`\n${FinishReason[finishReason]}, ${usage?.outputTokens} tokens, trace ${traceId}`);
} catch (error) {
  if (!HeadraceError.is(error)) throw error;
  console.error(`\n${error.reason || Code[error.code]}: ${error.message} (trace ${error.traceId})`);
  process.exitCode = 1;
} finally {
  client.close();
}
