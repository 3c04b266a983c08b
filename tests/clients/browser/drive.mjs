// Uses the example page in Chromium as a person would, and tells as JSON what it showed.
//
//   node drive.mjs '{"chromium": …, "page": …, "spki": …, "token": …, "pictures": …}'

import { chromium } from "playwright-core";

const { chromium: executablePath, page: address, spki, token, pictures } = JSON.parse(process.argv[2]);
const browser = await chromium.launch({
  executablePath,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // Envoy's certificate, and no other, is believed without its authority.
    `--ignore-certificate-errors-spki-list=${spki}`,
  ],
});
const seen = { complaints: [] };
const page = await browser.newPage({ viewport: { width: 900, height: 820 } });
try {
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  const text = (id) => page.locator(`#${id}`).innerText();
  const until = (id, part) => page.locator(`#${id}`, { hasText: part }).waitFor();
  const picture = (name) => page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  const ask = async (prompt, more = {}) => {
    const values = { prompt, temperature: "0", limit: "17", ...more };
    for (const [id, value] of Object.entries(values)) await page.fill(`#${id}`, value);
    await page.click("#send");
  };

  // Without a token, then with one.
  await page.goto(address);
  await page.locator("#connection.down").waitFor();
  seen.refused = { reason: await text("reason"), message: await text("message") };
  await page.click("summary");
  await page.fill("#token", token);
  await page.click("#connect button");
  await page.locator("#connection.up").waitFor();
  seen.models = await page.locator("#models button").allInnerTexts();
  seen.chosen = await page.inputValue("#model");
  await page.click("summary");

  // An answer: how long it was at each time that it grew.
  await page.evaluate(() => {
    const answer = document.getElementById("answer");
    globalThis.lengths = [];
    new MutationObserver(() => globalThis.lengths.push(answer.textContent.length)).observe(answer, {
      childList: true,
    });
  });
  await ask("What is the capital of France? Explain briefly.");
  await until("stats", "the limit was reached");
  seen.answer = await page.locator("#answer").textContent();
  seen.stats = await text("stats");
  seen.lengths = await page.evaluate(() => globalThis.lengths);
  await picture("answer");

  // Stopped in its midst.
  await ask("Tell me a long story about the sea.", { limit: "2000" });
  await until("stats", "tokens/s");
  await picture("running");
  await page.click("#stop");
  await until("stats", "stopped");
  seen.stopped = await text("stats");
  seen.errorAfterStop = await page.locator("#error").isVisible();

  // A model that there is not, and the way out that is offered.
  await ask("Hello", { model: "smolm2:135m" });
  await until("reason", "MODEL_NOT_FOUND");
  seen.error = {};
  for (const id of ["reason", "code", "message", "trace"]) seen.error[id] = await text(id);
  await picture("error");
  await page.click("#remedy button");
  seen.mended = await page.inputValue("#model");

  // What breaks a rule is told by its field.
  await ask("Hello", { temperature: "11" });
  await until("reason", "INVALID_REQUEST");
  seen.invalid = await text("message");

  // On a small and dark screen.
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 390, height: 780 });
  await picture("small");
} catch (error) {
  console.log(seen, await page.innerText("body"));
  throw error;
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
