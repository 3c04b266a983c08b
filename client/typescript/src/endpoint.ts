/** How a program reaches a server: where it is, by TLS or not, and as whom. Opens no connection. */

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { invalid } from "./errors.js";
import { checkOptions } from "./options.js";
import { cleanToken, guardToken, isLoopback } from "./token.js";

const TLS_OPTIONS: readonly (keyof TlsOptions)[] = ["ca", "cert", "key"];
const PORT = 50151;
const DEFAULT = `127.0.0.1:${PORT}`;

/** Certificates in PEM: the text itself, not the name of a file. */
export interface TlsOptions {
  /** The authorities to trust. Default: HEADRACE_TLS_CA names a file, else those of Node. */
  readonly ca?: string | Uint8Array | undefined;
  /** The client's own certificate, where the server asks for one. Default: HEADRACE_CLIENT_CERT. */
  readonly cert?: string | Uint8Array | undefined;
  /** Its key. Default: HEADRACE_CLIENT_KEY. */
  readonly key?: string | Uint8Array | undefined;
}

/** How a client reaches its server. */
export interface EndpointOptions {
  /** "host:port", "https://host:port", or "unix:/path". Default: HEADRACE_HOST, else
   * 127.0.0.1:50151. */
  readonly target?: string | undefined;
  /** Who is calling. Default: HEADRACE_TOKEN. Never sent in the clear to another machine. */
  readonly token?: string | undefined;
  /** For an `https://` target. */
  readonly tls?: TlsOptions | undefined;
}

/** A server and the way to it. */
export interface Endpoint {
  /** For people, and for errors. */
  readonly target: string;
  /** As Node's http2 takes it. */
  readonly authority: string;
  /** The path of a Unix socket, where it is one. */
  readonly socket?: string;
  readonly tls?: { ca?: Pem; cert?: Pem; key?: Pem };
  readonly token: string;
}

type Pem = string | Buffer;
type Environment = Readonly<Record<string, string | undefined>>;

/** By the options of a client; what they leave open the environment says.
 *
 * Throws INVALID_REQUEST for a token that would travel in the clear, for files that cannot be read,
 * and for options that have no effect. */
export function resolveEndpoint(options: EndpointOptions, env: Environment): Endpoint {
  if (options.tls !== undefined) checkOptions(options.tls, TLS_OPTIONS, "tls");
  const where = options.target || env.HEADRACE_HOST || DEFAULT;
  const [, scheme = "", rest = ""] = /^(https:\/\/|http:\/\/|unix:)?(.*)$/is.exec(where) ?? [];
  const token = cleanToken(options.token ?? env.HEADRACE_TOKEN ?? "");
  if (scheme.toLowerCase() === "unix:") {
    if (options.tls) throw invalid("a Unix socket is spoken to in the clear", "tls");
    return { target: where, authority: "http://localhost", socket: rest, token };
  }
  const host = withPort(rest.replace(/\/+$/, ""), where);
  const { hostname } = new URL(`http://${host}`);
  const encrypted = scheme.toLowerCase() === "https://";
  const local = isLoopback(hostname);
  guardToken(token, host, encrypted, local);
  if (encrypted) {
    const tls = credentials(options.tls ?? {}, env);
    return { target: host, authority: `https://${host}`, tls, token };
  }
  if (options.tls) throw invalid(`write https://${host} as the target`, "tls");
  if (!local && env.HEADRACE_TLS_CA) {
    const message = `HEADRACE_TLS_CA is set, and ${host} would be spoken to in the clear`;
    throw invalid(`${message}; write https://${host}, or unset it`, "target");
  }
  return { target: host, authority: `http://${host}`, token };
}

/** A host without a port gets Headrace's own. */
function withPort(host: string, where: string): string {
  const bare = /^[^[\]]*:[^[\]]*:/.test(host) ? `[${host}]` : host || "127.0.0.1";
  const whole = /:\d+$/.test(bare.replace(/^\[.*\]/, "")) ? bare : `${bare}:${PORT}`;
  if (!/^(\[[\da-f:.]+\]|[^\s/?#@:[\]]+):\d+$/i.test(whole) || !URL.canParse(`http://${whole}`)) {
    throw invalid(`${where} is no server; write host:port, or https://host:port`, "target");
  }
  return whole;
}

function credentials(given: TlsOptions, env: Environment): NonNullable<Endpoint["tls"]> {
  const ca = pem(given.ca) ?? file(env, "HEADRACE_TLS_CA");
  // A pair: half of one and half of another would fit nowhere.
  const own = given.cert !== undefined || given.key !== undefined;
  const cert = own ? pem(given.cert) : file(env, "HEADRACE_CLIENT_CERT");
  const key = own ? pem(given.key) : file(env, "HEADRACE_CLIENT_KEY");
  if ((cert === undefined) !== (key === undefined)) {
    const names = own ? "tls.cert and tls.key" : "HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY";
    throw invalid(`${names} go together; set both`, "tls");
  }
  return { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) };
}

function pem(given: string | Uint8Array | undefined): Pem | undefined {
  return given === undefined || typeof given === "string" ? given : Buffer.from(given);
}

function file(env: Environment, name: string): Pem | undefined {
  const path = env[name];
  if (!path) return undefined;
  try {
    return readFileSync(path.replace(/^~(?=\/)/, homedir()));
  } catch (error) {
    throw invalid(`${name} names a file that cannot be read: ${error}`, "tls", error);
  }
}
