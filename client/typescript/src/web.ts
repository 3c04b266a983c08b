/** The client for browsers: gRPC-Web, by fetch. Envoy before the controllers speaks it. */

import type { Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import type { CallDefaults } from "./calls.js";
import { HeadraceClient } from "./client.js";
import { invalid } from "./errors.js";
import { checkOptions } from "./options.js";
import { cleanToken, guardToken, isLoopback } from "./token.js";

export * from "./index.js";

const OPTIONS: readonly (keyof ClientOptions)[] = [
  "target",
  "token",
  "timeoutMs",
  "interceptors",
  "fetch",
];

/** Options of a client for browsers. */
export interface ClientOptions extends CallDefaults {
  /** Where Envoy is: "https://host:port", with a path where it has one. Default: where the page came
   * from. */
  readonly target?: string;
  /** Interceptors of Connect; they see each attempt of a call. */
  readonly interceptors?: Interceptor[];
  /** In place of the browser's own. */
  readonly fetch?: typeof globalThis.fetch;
}

/** A client of the server behind `target`.
 *
 * The constructor throws HeadraceError for options that cannot be. */
export class Client extends HeadraceClient {
  constructor(options: ClientOptions = {}) {
    checkOptions(options, OPTIONS, "a client");
    const target = options.target ?? globalThis.location?.origin ?? "";
    if (!/^https?:\/\//i.test(target) || !URL.canParse(target)) {
      throw invalid(`"${target}" is no server; write https://host:port`, "target");
    }
    const { protocol, host, hostname } = new URL(target);
    const token = cleanToken(options.token ?? "");
    guardToken(token, host, protocol === "https:", isLoopback(hostname));
    const transport = createGrpcWebTransport({
      baseUrl: target,
      interceptors: options.interceptors ?? [],
      ...(options.fetch && { fetch: options.fetch }),
    });
    super(transport, target, { timeoutMs: options.timeoutMs, token });
  }
}
