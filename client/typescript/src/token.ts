/** A token, and whom it may be shown to. */

import { invalid } from "./errors.js";

/** The token as it is sent: what a file or a header may have around it is left out. */
export function cleanToken(token: string): string {
  const cleaned = token.trim().replace(/^bearer\s+/i, "");
  if (!/^[!-~]*$/.test(cleaned)) throw invalid("it has characters that no token has", "token");
  return cleaned;
}

/** Refuses to send a token in the clear to another machine than this one. */
export function guardToken(token: string, target: string, encrypted: boolean, local: boolean) {
  if (!token || encrypted || local) return;
  throw invalid(
    `it would travel to ${target} in the clear; connect to https://${target}, or send none`,
    "token",
  );
}

/** Whether a host is this machine: a loopback address, or localhost. */
export function isLoopback(host: string): boolean {
  const bare = host.replace(/^\[|\]$/g, "").toLowerCase();
  return bare === "localhost" || bare === "::1" || /^127(\.\d{1,3}){3}$/.test(bare);
}
