/** The client for Node: gRPC over HTTP/2. */

import { connect as connectSocket } from "node:net";
import type { Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import type { CallDefaults } from "./calls.js";
import { HeadraceClient } from "./client.js";
import { type Endpoint, type EndpointOptions, resolveEndpoint } from "./endpoint.js";
import { checkOptions } from "./options.js";

export type { EndpointOptions, TlsOptions } from "./endpoint.js";
export * from "./index.js";

const OPTIONS: readonly (keyof ClientOptions)[] = [
  "target",
  "token",
  "tls",
  "timeoutMs",
  "interceptors",
];
/** The largest message that is received: twice what the contract allows a prompt. */
const MAX_MESSAGE_BYTES = 32 << 20;

/** Options of a client for Node. */
export interface ClientOptions extends EndpointOptions, Pick<CallDefaults, "timeoutMs"> {
  /** Interceptors of Connect; they see each attempt of a call. */
  readonly interceptors?: Interceptor[];
}

/** A client of the server that the options or the environment name. It connects at the first call,
 * and again by itself; an idle connection keeps no process alive.
 *
 * The constructor throws HeadraceError for options that cannot be. */
export class Client extends HeadraceClient {
  readonly #sessions: Http2SessionManager;

  constructor(options: ClientOptions = {}) {
    checkOptions(options, OPTIONS, "a client");
    const endpoint = resolveEndpoint(options, process.env);
    const sessions = new Http2SessionManager(
      endpoint.authority,
      // As all clients of Headrace: a broken connection is noticed under a call.
      { pingIntervalMs: 30_000, pingTimeoutMs: 10_000 },
      sessionOptions(endpoint),
    );
    const transport = createGrpcTransport({
      baseUrl: endpoint.authority,
      sessionManager: sessions,
      readMaxBytes: MAX_MESSAGE_BYTES,
      interceptors: options.interceptors ?? [],
    });
    super(transport, endpoint.target, { timeoutMs: options.timeoutMs, token: endpoint.token });
    this.#sessions = sessions;
  }

  /** Closes the connection, and ends the calls on it with UNAVAILABLE. A later call opens another. */
  close(): void {
    this.#sessions.abort();
  }
}

function sessionOptions({ socket, tls }: Endpoint) {
  return socket === undefined ? { ...tls } : { createConnection: () => connectSocket(socket) };
}
