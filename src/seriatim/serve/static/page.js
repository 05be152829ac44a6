// The playground: asks the server's public API and shows what comes, id by id.
// Whatever a model says becomes text nodes, never markup.

import { TYPES, classOf, classesOf, element, labelOf, view } from "./objects.js";

const $ = (id) => document.getElementById(id);
const MODES = { continue: "Continue", fill: "Fill a gap", chat: "Chat" };
const PROMPTS = {
  text: "Text", byte: "Text", music: "ABC notation, or lines such as 0 C4 480", protein: "Residues",
  image: "Empty, or label=NAME",
};
const state = { models: new Map(), key: "", abort: null, asked: null, traces: [], talk: [], view: null, file: null };

// ---- the API -----------------------------------------------------------------------------------

async function call(path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status === 401) lock();
  const said = await answer.json().catch(() => null);
  throw new Error(said?.error?.message ?? `the server answers ${answer.status}`);
}

// Objects of a stream of server-sent events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream broke off");
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      yield said;
    }
  }
}

// ---- models ------------------------------------------------------------------------------------

async function load() {
  try {
    const { data } = await (await call("v1/models")).json();
    state.models = new Map(data.map((model) => [model.id, model]));
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
    $("locked").hidden = true;
    fail("");
    choose();
  } catch (error) {
    if ($("locked").hidden) fail(`No models: ${error.message}`);
  }
}

function lock() {
  $("locked").hidden = false;
  $("key").focus();
}

const model = () => state.models.get($("model").value);
const mode = () => new FormData($("ask")).get("mode");

function choose() {
  const { codec, context, vocab_size, precision, infills, chats } = model();
  const can = { continue: true, fill: infills, chat: chats };
  for (const name of Object.keys(MODES)) {
    const input = $("modes").querySelector(`[value=${name}]`);
    input.closest("label").hidden = !can[name];
    input.disabled = !can[name];
    if (!can[name] && input.checked) $("modes").querySelector("[value=continue]").checked = true;
  }
  $("modes").hidden = !infills && !chats;
  const kind = codec ?? "ids";
  const facts = [kind, `${vocab_size.toLocaleString()} ids`, `context ${context.toLocaleString()}`, precision];
  $("facts").textContent = facts.join(" · ");
  attach(null);
  leave();
  arrange();
}

function arrange() {
  const { codec } = model(), chat = mode() === "chat", fill = mode() === "fill";
  const plain = !codec || codec === "text" || codec === "byte";
  document.body.classList.toggle("coded", !plain || fill);
  $("after").hidden = !fill;
  $("files").hidden = !TYPES[codec] && codec !== "protein";
  $("talk").hidden = !chat;
  $("clear").hidden = !chat;
  $("prompt-name").textContent = chat ? "Message" : fill ? "Text before the gap" : codec ? "Prompt" : "Prompt, as ids";
  $("prompt").placeholder = codec ? (PROMPTS[codec] ?? "") : "1 2 3";
  $("go").textContent = chat ? "Send" : "Generate";
}

// A file instead of a prompt; null for the prompt again.
async function attach(file) {
  state.file = null;
  $("opened").textContent = "";
  $("file").value = "";
  if (!file) return;
  const letters = Array.from(new Uint8Array(await file.arrayBuffer()), (byte) => String.fromCharCode(byte));
  state.file = { base64: btoa(letters.join("")), name: file.name };
  $("opened").textContent = `${file.name} is the prompt`;
  $("prompt").value = "";
}

// ---- asking ------------------------------------------------------------------------------------

function asked() {
  const made = {
    model: $("model").value, stream: true, stream_options: { include_usage: true }, trace: 6,
    temperature: Number($("temperature").value), top_p: Number($("top_p").value),
    max_tokens: Number($("max_tokens").value),
  };
  if ($("speculate").value) made.speculate = $("speculate").value;
  const { codec } = model(), text = $("prompt").value;
  if (mode() === "chat") {
    const messages = text ? [...state.talk, { role: "user", content: text }] : state.talk;
    return { path: "v1/chat/completions", body: { ...made, messages } };
  }
  const prompt = state.file ?? (codec ? text : (text.match(/\d+/g) ?? []).map(Number));
  const more = mode() === "fill" ? { suffix: $("suffix").value } : {};
  if (TYPES[codec]) more.render = TYPES[codec];
  return { path: "v1/completions", body: { ...made, ...more, prompt } };
}

// A seed of 32 bits: one of 64 would not survive JavaScript's numbers.
const seed = () => ($("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number($("seed").value));

async function ask(request) {
  state.asked = request;
  const body = { ...request.body, seed: seed() };
  begin(body.seed);
  const ended = { reply: "" };
  const since = performance.now();
  try {
    const answer = await call(request.path, body, state.abort.signal);
    for await (const chunk of events(answer)) show(chunk, ended, since);
    finish(ended, since);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (state.asked !== request) return; // nobody looks at it any more
    $("status").textContent = stopped ? `Stopped after ${counted(state.traces.length, "id")}` : "";
    if (!stopped) fail(error.message);
  } finally {
    end(request, ended);
  }
}

function begin(seed) {
  state.abort?.abort();
  forget();
  state.abort = new AbortController();
  state.view = view(model(), $("object"));
  state.classes = classesOf(model());
  classLegend(state.classes ?? {});
  state.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  document.body.classList.add("running");
  $("stop").disabled = false;
  $("go").disabled = $("retry").disabled = true;
  $("used").textContent = seed;
  $("seeded").hidden = false;
  $("status").textContent = "Generating …";
  drawTalk();
}

function classLegend(classes) {
  $("legend").querySelectorAll(".class").forEach((item) => item.remove());
  for (const [name, members] of Object.entries(classes)) {
    const item = element("li", "class");
    item.append(element("span", `swatch ${name}`), document.createTextNode(`${labelOf(name, members)}`));
    $("legend").append(item);
  }
}

// End what is under way and what could be asked again, and the conversation.
function leave() {
  state.abort?.abort();
  state.asked = null;
  state.talk = [];
  $("talk").replaceChildren();
  $("retry").disabled = true;
  forget();
}

function forget() {
  state.view?.stop?.();
  state.traces = [];
  $("ids").replaceChildren();
  $("held").hidden = true;
  $("object").hidden = $("legend").hidden = $("look").hidden = $("seeded").hidden = true;
  $("status").textContent = "";
  fail("");
}

function show({ choices: [choice], usage }, ended, since) {
  if (usage) ended.usage = usage;
  if (!choice) return;
  const text = choice.text ?? choice.delta?.content ?? "";
  ended.reply += text;
  for (const row of choice.trace ?? []) append(row);
  state.view.add(text, choice.token_ids);
  if (choice.rendered) state.view.done(choice.rendered);
  if (choice.finish_reason) ended.stop = choice.stop_reason;
  const count = state.traces.length;
  if (count) $("legend").hidden = false;
  document.title = count ? `${count} · seriatim` : "seriatim";
}

function finish({ usage, stop }, since) {
  const { accepted_prediction_tokens: held, rejected_prediction_tokens: lost } = usage.completion_tokens_details;
  const rate = (1000 * usage.completion_tokens) / (performance.now() - since);
  const why = { max_tokens: "as many as asked for", context: "the context is full" }[stop] ?? "its own end";
  const said = [counted(state.traces.length, "id"), why, `${rate.toFixed(rate < 10 ? 1 : 0)} ids/s`];
  if (held + lost) said.push(`${held} of ${held + lost} drafts held`);
  $("status").textContent = said.join(" · ");
}

function end(request, { reply, stop }) {
  document.body.classList.remove("running");
  state.abort = null;
  $("stop").disabled = true;
  $("go").disabled = false;
  $("retry").disabled = !state.asked;
  document.title = "seriatim";
  if (state.asked === request && request.path.includes("chat") && (reply || stop !== undefined)) {
    state.talk = [...request.body.messages, { role: "assistant", content: reply }];
    $("prompt").value = "";
    $("prompt").focus();
  }
}

function drawTalk() {
  const said = mode() === "chat" ? state.asked.body.messages : [];
  $("talk").replaceChildren(...said.map(({ role, content }) => {
    const line = element("p", role);
    line.append(element("b", "", role), document.createTextNode(content));
    return line;
  }));
}

const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;

function fail(why) {
  $("wrong").textContent = why;
  $("wrong").hidden = !why;
}

// ---- ids ---------------------------------------------------------------------------------------

function append(row) {
  const span = element("span", "id", letters(row));
  span.setAttribute("role", "option");
  span.tabIndex = -1;
  span.dataset.place = state.traces.length;
  span.style.setProperty("--surprise", surprise(row).toFixed(3));
  if (row.accepted) {
    span.classList.add("accepted");
    $("held").hidden = false;
  }
  if (row.bytes === null) span.classList.add(TYPES[model().codec] ? "number" : "mark");
  else if (state.classes) span.classList.add("residue", classOf(state.classes, row.text));
  if (!span.textContent) span.classList.add("part"); // of a character
  state.traces.push(row);
  $("ids").append(span);
}

// The text that an id completes: a character's last byte shows it. Of objects, the id.
function letters({ id, text, bytes }) {
  if (TYPES[model().codec] || (bytes === null && !model().codec)) return `${id}`;
  return bytes === null ? text : state.decoder.decode(new Uint8Array(bytes), { stream: true });
}

const MOST_BITS = 12; // of surprise that shading tells apart
const surprise = ({ logprob }) => Math.min(1, -(logprob ?? 0) / Math.LN2 / MOST_BITS);
const chance = ({ logprob }) => Math.exp(logprob ?? 0);
const percent = (p) => (p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
const SIGNS = { " ": "␣", "\n": "↵", "\r": "⇤", "\t": "⇥" };

// An id by its text, with its white space seen; one without a text by its number.
function named({ id, text, bytes }) {
  return bytes === null && text === `<${id}>` ? `${id}` : text.replace(/[ \n\r\t]/g, (c) => SIGNS[c]);
}

function look(span) {
  $("ids").querySelector(".current")?.classList.remove("current");
  $("look").hidden = !span;
  if (!span) return;
  span.classList.add("current");
  const row = state.traces[span.dataset.place];
  const others = row.top.some(({ id }) => id === row.id) ? row.top : [...row.top, row];
  const head = element("p", "", `id ${row.id}${row.accepted ? " · a draft that held" : ""}`);
  $("look").replaceChildren(head, ...others.map((other) => alternative(other, other.id === row.id)));
  span.setAttribute("aria-label", `${named(row)}, ${percent(chance(row))}${row.accepted ? ", a draft that held" : ""}; ` +
    `likeliest: ${row.top.slice(0, 3).map((o) => `${named(o)} ${percent(chance(o))}`).join(", ")}`);
  place(span);
}

function alternative(row, chosen) {
  const line = element("div", chosen ? "row chosen" : "row");
  line.style.setProperty("--p", chance(row).toFixed(4));
  line.append(element("span", "", named(row)), element("span", "", percent(chance(row))));
  return line;
}

function place(span) {
  const within = $("look").parentElement.getBoundingClientRect(), at = span.getClientRects()[0];
  if (!at) return;
  const left = Math.min(at.left - within.left, within.width - $("look").offsetWidth);
  const below = at.bottom - within.top + 8, above = at.top - within.top - $("look").offsetHeight - 8;
  const fits = at.bottom + $("look").offsetHeight + 12 < innerHeight || at.top < $("look").offsetHeight + 12;
  $("look").style.setProperty("left", `${Math.max(0, left)}px`);
  $("look").style.setProperty("top", `${fits ? below : above}px`);
}

const idOf = (event) => event.target.closest?.("#ids .id");

function move(event) {
  const all = [...$("ids").children], now = all.indexOf(document.activeElement);
  const to = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Escape") return look(null);
  if (to === undefined || !all.length) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, to))].focus();
}

// ---- what people do ----------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.abort && model()) ask(asked());
});
$("ask").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  const sends = event.ctrlKey || event.metaKey || (mode() === "chat" && !event.shiftKey && event.target === $("prompt"));
  if (!sends) return;
  event.preventDefault();
  if (!state.abort) $("ask").requestSubmit($("go"));
});
$("stop").addEventListener("click", () => state.abort?.abort());
$("file").addEventListener("change", (event) => attach(event.target.files[0]));
$("prompt").addEventListener("input", () => state.file && attach(null));
$("retry").addEventListener("click", () => ask(state.asked));
$("clear").addEventListener("click", () => {
  leave();
  $("prompt").focus();
});
$("reuse").addEventListener("click", () => ($("seed").value = $("used").textContent));
$("model").addEventListener("change", choose);
$("modes").addEventListener("change", () => {
  leave();
  arrange();
});
$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  load();
});
for (const name of ["temperature", "top_p"]) {
  const tell = () => ($(`${name}-is`).textContent = Number($(name).value).toFixed(2));
  $(name).addEventListener("input", tell);
  tell();
}
$("ids").addEventListener("pointerover", (event) => idOf(event) && look(idOf(event)));
$("ids").addEventListener("pointerleave", (event) => event.pointerType === "mouse" && look(null));
$("ids").addEventListener("focusin", (event) => idOf(event) && look(idOf(event)));
$("ids").addEventListener("focusout", () => look(null));
$("ids").addEventListener("click", (event) => idOf(event)?.focus());
$("ids").addEventListener("keydown", move);
$("settings").open = innerWidth > 736;
if (/Mac|iP(hone|ad)/.test(navigator.platform)) $("hint").textContent = "⌘ Return";
load();
