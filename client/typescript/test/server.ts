/** A server of one's own, by gRPC over HTTP/2 or gRPC-Web over HTTP/1.1, on a free port. */

import { once } from "node:events";
import { createServer as createHttpServer } from "node:http";
import { createServer, type ServerHttp2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import type { DescMessage } from "@bufbuild/protobuf";
import { type Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Client } from "headrace/node";

/** Serves until the test ends; gives the address. */
export async function serve(t: TestContext, routes: (router: ConnectRouter) => void) {
  const sessions = new Set<ServerHttp2Session>();
  const server = createServer({}, connectNodeAdapter({ routes }));
  server.on("session", (session) => sessions.add(session));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** The same for browsers. */
export async function serveWeb(t: TestContext, routes: (router: ConnectRouter) => void) {
  const server = createHttpServer(connectNodeAdapter({ routes }));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A client that is closed with the test. */
export function open(t: TestContext, options: ConstructorParameters<typeof Client>[0]): Client {
  const client = new Client(options);
  t.after(() => client.close());
  return client;
}

/** An error as Headrace sends it. */
export function failure(
  code: Code,
  message: string,
  details: { desc: DescMessage; value: object }[] = [],
  trailers: HeadersInit = {},
): ConnectError {
  return new ConnectError(message, code, trailers, details as never);
}

/** What is thrown by it, or by the promise. */
export async function caught<T extends object = Error>(
  run: Promise<unknown> | (() => unknown),
): Promise<T> {
  try {
    await (typeof run === "function" ? run() : run);
  } catch (error) {
    return error as T;
  }
  throw new Error("nothing was thrown");
}
