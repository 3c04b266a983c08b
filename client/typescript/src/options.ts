/** Options before they have an effect: none is ignored. */

import { invalid } from "./errors.js";

/** Refuses what is no object, and options that there are not.
 *
 * @param known - the names that there are
 * @param what - how the options are called in the error, such as "tls"
 */
export function checkOptions(options: unknown, known: readonly string[], what: string): void {
  if (typeof options !== "object" || options === null) {
    throw invalid(`${what} must be an object with ${known.join(", ")}, and is ${options}`);
  }
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    throw invalid(`${what} has no such option; it has ${known.join(", ")}`, key);
  }
}
