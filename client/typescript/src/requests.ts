/** Requests before they are sent: nothing in one is ignored, or changed on its way. */

import {
  create,
  type DescMessage,
  type DescMethod,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { HeadraceError, invalid } from "./errors.js";

/** The largest message that a server takes. One that is longer would cost the whole connection, with
 * all the other calls on it, since Node sends on while the server has already refused. */
const MAX_MESSAGE_BYTES = 32 << 20;

/** The message of a call. Throws INVALID_REQUEST for fields that there are not, and for values that
 * Protobuf cannot carry; RESOURCE_EXHAUSTED for what is too large to be sent. */
export function requestOf<I extends DescMessage>(
  method: DescMethod & { input: I },
  init: MessageInitShape<I>,
): MessageShape<I> {
  walk(method.input, init, "");
  const message = create(method.input, init);
  const { length } = encode(method.input, message);
  if (length > MAX_MESSAGE_BYTES) {
    const text = `the request has ${length} bytes, and a server takes at most ${MAX_MESSAGE_BYTES}`;
    throw new HeadraceError(Code.ResourceExhausted, `${text}; it was not sent`);
  }
  return message;
}

/** The name of the model that a request is for, where a header can carry it. */
export function modelOf(message: object): string | undefined {
  const model = "model" in message ? message.model : undefined;
  return typeof model === "string" && /^[\x20-\x7e]+$/.test(model) ? model : undefined;
}

function encode<I extends DescMessage>(desc: I, message: MessageShape<I>): Uint8Array {
  try {
    return toBinary(desc, message);
  } catch (error) {
    throw invalid(error instanceof Error ? error.message : String(error), "", error);
  }
}

function walk(desc: DescMessage, value: unknown, path: string): void {
  if (desc.typeName.startsWith("google.protobuf.")) return;
  if (typeof value !== "object" || value === null) return;
  for (const [key, inner] of Object.entries(value)) {
    if (key.startsWith("$") || inner === undefined) continue;
    const member = desc.members.find((one) => one.localName === key);
    if (!member) throw unknown(desc, key, path);
    if (member.kind === "field") {
      walkField(member, inner, path + member.name);
    } else if (inner.case !== undefined) {
      const chosen = member.fields.find((one) => one.localName === inner.case);
      if (!chosen) throw unknown(desc, inner.case, path);
      walkField(chosen, inner.value, path + chosen.name);
    }
  }
}

function walkField(field: DescMessage["fields"][number], value: unknown, path: string): void {
  if (field.fieldKind === "list" && Array.isArray(value)) {
    for (const [index, item] of value.entries())
      walkValue(field.message, item, `${path}[${index}]`);
  } else {
    walkValue(field.fieldKind === "map" ? undefined : field.message, value, path);
  }
}

function walkValue(message: DescMessage | undefined, value: unknown, path: string): void {
  if (message) walk(message, value, `${path}.`);
  // Half a surrogate pair would be replaced on the way, and nobody would know.
  else if (typeof value === "string" && /\p{Surrogate}/u.test(value)) {
    throw invalid("the text has half a surrogate pair, which UTF-8 cannot carry", path);
  }
}

function unknown(desc: DescMessage, key: string, path: string) {
  const known = desc.members.map((one) => one.localName).join(", ");
  return invalid(`${desc.name} has no such field; it has ${known}`, path + key);
}
