import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { createRouterTransport } from "@connectrpc/connect";
import { HeadraceClient, HeadraceError } from "headrace";
import { Client } from "headrace/node";
import { type EndpointOptions, resolveEndpoint } from "#dist/endpoint";
import { cleanToken } from "#dist/token";

const refused = (options: EndpointOptions, env: Record<string, string>, text: RegExp) =>
  assert.throws(
    () => resolveEndpoint(options, env),
    (error) => HeadraceError.is(error, "INVALID_REQUEST") && text.test(error.message),
  );

test("targets, and Headrace's port where there is none", () => {
  for (const [target, authority] of [
    [undefined, "http://127.0.0.1:50151"],
    ["10.1.2.3", "http://10.1.2.3:50151"],
    ["models.local:7001", "http://models.local:7001"],
    ["http://models.local:7001/", "http://models.local:7001"],
    ["HTTPS://models.local", "https://models.local:50151"],
    ["https://[::1]", "https://[::1]:50151"],
    ["[fe80::1]:7", "http://[fe80::1]:7"],
    ["fe80::1", "http://[fe80::1]:50151"],
    ["https://models.local:443", "https://models.local:443"],
  ]) {
    assert.equal(resolveEndpoint({ target }, {}).authority, authority, target);
  }
  assert.equal(resolveEndpoint({ target: "unix:/run/h.sock" }, {}).socket, "/run/h.sock");
});

test("what is no server is refused", () => {
  for (const target of [
    "https://host/path",
    "host:port",
    "a b",
    "dns:///x",
    "host:99999",
    "[::1",
  ]) {
    refused({ target }, {}, /no server/);
  }
});

test("the environment says what the options leave open", async () => {
  const folder = await mkdtemp(join(tmpdir(), "headrace-"));
  const [ca, cert, key] = ["ca", "cert", "key"].map((name) => {
    writeFileSync(join(folder, name), name);
    return join(folder, name);
  }) as [string, string, string];
  const env = {
    HEADRACE_HOST: "https://models.local:7001",
    HEADRACE_TOKEN: " Bearer hr_env\n",
    HEADRACE_TLS_CA: ca,
    HEADRACE_CLIENT_CERT: cert,
    HEADRACE_CLIENT_KEY: key,
  };
  const found = resolveEndpoint({}, env);
  assert.equal(found.authority, "https://models.local:7001");
  assert.equal(found.token, "hr_env");
  assert.deepEqual([found.tls?.ca, found.tls?.cert, found.tls?.key].map(String), [
    "ca",
    "cert",
    "key",
  ]);
  const given = resolveEndpoint({ token: "", tls: { ca: "own", cert: "c", key: "k" } }, env);
  assert.deepEqual([given.token, given.tls], ["", { ca: "own", cert: "c", key: "k" }]);
  refused({ tls: { cert: "c" } }, env, /tls.key go together/);
  refused({}, { ...env, HEADRACE_CLIENT_KEY: "" }, /HEADRACE_CLIENT_KEY go together/);
  refused({}, { ...env, HEADRACE_TLS_CA: "/none" }, /HEADRACE_TLS_CA names a file/);
  refused({ target: "models.local" }, { HEADRACE_TLS_CA: ca }, /in the clear/);
});

test("a token is not sent in the clear to another machine", () => {
  refused({ target: "10.0.0.1:7001", token: "hr_x" }, {}, /10.0.0.1:7001 in the clear/);
  refused({ target: "127.0.0.1.example:1", token: "hr_x" }, {}, /in the clear/);
  for (const target of ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/x"]) {
    assert.equal(resolveEndpoint({ target, token: "hr_x" }, {}).token, "hr_x");
  }
  assert.equal(resolveEndpoint({ target: "https://10.0.0.1:1", token: "hr_x" }, {}).token, "hr_x");
  assert.equal(cleanToken("bearer  hr_x "), "hr_x");
  assert.throws(() => cleanToken("hr_x\nevil: 1"), /characters/);
});

test("TLS options have an effect, or are refused", () => {
  refused({ target: "127.0.0.1:1", tls: { ca: "x" } }, {}, /https:\/\/127.0.0.1:1/);
  refused({ target: "unix:/x", tls: {} }, {}, /Unix socket/);
  const misspelt: object = { certt: "x" };
  refused({ target: "https://models.local", tls: misspelt }, {}, /certt: tls has no such option/);
});

test("options that there are not are refused, and named", () => {
  const cases: [unknown, RegExp][] = [
    [{ targett: "models.local" }, /^targett: .* it has target, token/],
    [{ target: "models.local", timeout: 5 }, /^timeout: .*timeoutMs/],
    [{ target: "models.local", timeoutMs: "5" }, /^timeoutMs: "5"/],
    ["models.local:7001", /must be an object with target/],
    [null, /must be an object/],
  ];
  const transport = createRouterTransport(() => undefined);
  assert.throws(
    () => new HeadraceClient(transport, "here", { timeout: 5 } as object),
    (error) => HeadraceError.is(error, "INVALID_REQUEST") && /^timeout: /.test(error.message),
  );
  for (const [options, text] of cases) {
    assert.throws(
      () => new Client(options as object),
      (error) => HeadraceError.is(error, "INVALID_REQUEST") && text.test(error.message),
    );
  }
});
