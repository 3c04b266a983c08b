/** A page that asks a model, by gRPC-Web through Envoy, and shows the answer as it comes. */

import { ChatRole, type CompletionProgress, FinishReason, ModelKind } from "headrace/v1";
import { Client, Code, type CompletionStream, HeadraceError } from "headrace/web";

const target = input("target");
const model = input("model");
let client: { made: Client; abort: AbortController } | undefined;
let running: CompletionStream | undefined;

target.value = new URLSearchParams(location.search).get("server") ?? "https://localhost:8443";
on("connect", "submit", connect);
on("ask", "submit", ask);
on("stop", "click", () => running?.cancel());
void connect();

/** Makes a client, and asks which models there are. */
async function connect(): Promise<void> {
  client?.abort.abort();
  client = undefined;
  const abort = new AbortController();
  show("connecting…");
  element("error").hidden = true;
  try {
    const made = new Client({ target: target.value, token: input("token").value });
    client = { made, abort };
    const options = { timeoutMs: 10_000, signal: abort.signal };
    const { models } = await made.model.listModels({}, options);
    const names = models.filter(({ kind }) => kind === ModelKind.TEXT).map(({ name }) => name);
    element("models").replaceChildren(...names.map((name) => choice(name, name)));
    model.value ||= names[0] ?? "";
    const count = `${names.length} ${names.length === 1 ? "model" : "models"}`;
    show(`${count} at ${new URL(target.value).host}`, "up");
  } catch (error) {
    // Another attempt has taken the place of this one.
    if (abort.signal.aborted) return;
    client = undefined;
    show("not connected", "down");
    showError(error);
  }
}

/** Asks, and shows the answer as it comes. */
async function ask(): Promise<void> {
  if (!client) await connect();
  if (!client) return;
  busy(true);
  const answer = element("answer");
  answer.textContent = "";
  const rate = new Rate();
  try {
    running = client.made.streamCompletion({
      model: model.value,
      input: {
        case: "chat",
        value: { messages: [{ role: ChatRole.USER, content: input("prompt").value }] },
      },
      sampling: { temperature: input("temperature").valueAsNumber },
      maxTokens: input("limit").valueAsNumber,
    });
    for await (const { event } of running) {
      if (event.case === "progress") rate.wait(event.value);
      if (event.case === "delta") {
        answer.append(event.value.text);
        rate.count(event.value.outputTokens);
      }
    }
    const { finishReason } = await running.collect();
    rate.end(finishReason === FinishReason.LENGTH ? "the limit was reached" : "complete");
  } catch (error) {
    // The half that has come stays; it is no whole answer, and is not said to be.
    if (error instanceof HeadraceError && error.code === Code.Canceled) rate.end("stopped");
    else {
      element("output").hidden = answer.textContent === "";
      rate.end("broken off");
      showError(error);
    }
  } finally {
    busy(false);
  }
}

/** Tokens a second, as they come. */
class Rate {
  #tokens = 0;
  #first = 0;
  readonly #begin = performance.now();

  wait({ queuePosition, loadFraction }: CompletionProgress): void {
    if (this.#tokens > 0) return;
    if (queuePosition) this.#show(`${queuePosition} ahead in the queue`);
    else if (loadFraction !== undefined) this.#show(`loading ${Math.round(loadFraction * 100)} %`);
  }

  count(tokens: number): void {
    this.#first ||= performance.now();
    this.#tokens = tokens;
    this.#show(this.#figures());
  }

  end(how: string): void {
    this.#show([this.#figures(), how].filter(Boolean).join(" · "));
  }

  #figures(): string {
    if (this.#tokens === 0) return "";
    const seconds = (performance.now() - this.#first) / 1000;
    const rate = seconds > 0 ? ((this.#tokens - 1) / seconds).toFixed(1) : "–";
    const first = Math.round(this.#first - this.#begin);
    return `${rate} tokens/s · ${this.#tokens} tokens · first after ${first} ms`;
  }

  #show(text: string): void {
    element("stats").textContent = text;
  }
}

function busy(yes: boolean): void {
  (element("send") as HTMLButtonElement).disabled = yes;
  (element("stop") as HTMLButtonElement).disabled = !yes;
  element("output").classList.toggle("busy", yes);
  if (!yes) return;
  element("output").hidden = false;
  element("error").hidden = true;
  element("stats").textContent = "waiting…";
}

/** What went wrong, by its reason, and what may help. */
function showError(error: unknown): void {
  if (!(error instanceof HeadraceError)) throw error;
  element("reason").textContent = error.reason;
  element("code").textContent = Code[error.code];
  element("message").textContent = error.message;
  element("trace").textContent = error.traceId || "none: nothing was sent";
  const remedy = element("remedy");
  remedy.replaceChildren();
  if (HeadraceError.is(error, "MODEL_NOT_FOUND")) {
    for (const name of (error.metadata.nearest ?? "").split(",").filter(Boolean)) {
      remedy.append(choice(`Use ${name}`, name));
    }
  } else if (error.retryAfterMs !== undefined) {
    remedy.append(`Try again in ${(error.retryAfterMs / 1000).toFixed(1)} s.`);
  }
  remedy.hidden = !remedy.hasChildNodes();
  element("error").hidden = false;
}

/** A button that takes a model. */
function choice(label: string, name: string): HTMLButtonElement {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.onclick = () => {
    model.value = name;
    element("error").hidden = true;
  };
  return button;
}

function show(state: string, kind = ""): void {
  element("connection").textContent = state;
  element("connection").className = kind;
}

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no ${id}`);
  return found;
}

function input(id: string): HTMLInputElement {
  return element(id) as HTMLInputElement;
}

function on(id: string, event: string, run: () => unknown): void {
  element(id).addEventListener(event, (happened) => {
    happened.preventDefault();
    void run();
  });
}
