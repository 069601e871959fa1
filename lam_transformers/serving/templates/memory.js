"use strict";

const element = (id) => document.getElementById(id);
const PAGE = 50; // memories that are listed at once
const DRAWING = "http://www.w3.org/2000/svg"; // the name of SVG's elements; nothing is loaded from there

// Asking the server

function names() {
  const chosen = { user_id: element("user").value, agent_id: element("agent").value, run_id: element("run").value };
  return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value.trim()));
}

async function ask(method, path, body, query = {}) {
  const headers = { "Content-Type": "application/json" };
  if (element("key").value) headers["Authorization"] = "Bearer " + element("key").value;
  const search = new URLSearchParams(query).toString();
  const options = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
  const answer = await fetch(path + (search && "?" + search), options);
  const text = await answer.text();
  const isJSON = (answer.headers.get("content-type") || "").startsWith("application/json");
  const result = isJSON ? JSON.parse(text) : text;
  if (!answer.ok) throw new Error(isJSON && result.error ? result.error : "The server answered " + answer.status);
  return result;
}

const at = (memory, rest = "") => "/memories/" + encodeURIComponent(memory.id) + rest;

// Making elements; whatever was said is text, never markup

function make(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function say(place, text, wrong = false) {
  place.textContent = text;
  place.classList.toggle("wrong", wrong);
}

function button(text, place, action) {
  const made = make("button", text, "plain");
  connect(made, place, () => action(made));
  return made;
}

function connect(made, place, action) {
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await action();
    } catch (error) {
      say(place, error.message, true);
    } finally {
      made.disabled = false;
    }
  });
}

function table(heads, rows) {
  const made = make("table");
  const head = make("tr");
  for (const name of heads) head.append(make("th", name));
  made.append(head);
  for (const row of rows) {
    const line = make("tr");
    for (const value of row) line.append(make("td", value));
    made.append(line);
  }
  return made;
}

const when = (time) => time.slice(0, 19).replace("T", " ");
const number = (value) => (typeof value === "number" ? value.toFixed(3) : "");

// One memory

function card(memory) {
  const made = make("article");
  made.dataset.id = memory.id;
  const whose = [memory.user_id, memory.agent_id, memory.run_id].filter(Boolean).join(", ") || "shared";
  const facts = [memory.kind + (memory.role ? " by " + memory.role : ""), whose, when(memory.time)];
  if (memory.key) facts.push("fact: " + memory.key);
  if (memory.version > 1) facts.push("version " + memory.version);
  if (memory.score !== undefined) facts.unshift(memory.score.toFixed(3));
  const text = make("div", "", "said");
  mark(text, memory);
  const below = make("div", "", "below");
  const status = make("div", "", "result");
  const buttons = make("div", "", "buttons");
  if (memory.parts) buttons.append(button("Why", status, () => show(below, "Why", why(memory))));
  if (memory.kind === "document") buttons.append(button("Read", status, () => read(memory, below)));
  if (memory.kind === "memory" || memory.kind === "turn") {
    buttons.append(button("Correct", status, () => correct(memory, made, below, status)));
  }
  buttons.append(button("History", status, () => history(memory, below)));
  buttons.append(button("Strengths", status, () => strengths(memory, below)));
  if (memory.kind !== "paragraph") buttons.append(forget(memory, made, status));
  made.append(make("div", facts.join(" · "), "number"), text);
  for (const variant of memory.variants || []) made.append(make("div", "also: " + variant.memory, "number"));
  made.append(buttons, below, status);
  return made;
}

// The text, with the passage that fits best; the server counts characters by code points.
function mark(place, memory) {
  const letters = Array.from(memory.memory);
  const [start, end] = memory.passage || [0, letters.length];
  if (start === 0 && end >= letters.length) {
    place.textContent = memory.memory;
    return;
  }
  place.append(letters.slice(0, start).join(""), make("mark", letters.slice(start, end).join("")), letters.slice(end).join(""));
}

function show(place, title, content) {
  const isShown = place.dataset.title === title;
  place.replaceChildren(...(isShown ? [] : [content]));
  place.dataset.title = isShown ? "" : title;
}

function why(memory) {
  return table(["part of the score", ""], Object.entries(memory.parts).map(([name, value]) => [name, number(value)]));
}

async function read(memory, below) {
  const text = await ask("GET", "/documents/" + encodeURIComponent(memory.id) + "/text", undefined, names());
  show(below, "Read", make("div", text, "said long"));
}

async function history(memory, below) {
  const versions = await ask("GET", at(memory, "/history"), undefined, names());
  const rows = versions.map((version) => [
    String(version.version),
    when(version.time) + (version.superseded ? " to " + when(version.superseded) : ""),
    version.new_memory,
  ]);
  show(below, "History", table(["version", "held", "text"], rows));
}

async function strengths(memory, below) {
  const events = await ask("GET", at(memory, "/events"), undefined, names());
  const moved = events.filter((event) => typeof event.fast === "number");
  const content = make("div");
  if (moved.length) content.append(curves(moved));
  const rows = events.map((event) => [
    when(event.time),
    event.kind,
    fading(event, "fast"),
    fading(event, "slow"),
    event.recalls === undefined ? "" : String(event.recalls),
  ]);
  content.append(table(["when", "what happened", "fast", "slow", "recalls"], rows));
  show(below, "Strengths", content);
}

function fading(event, name) {
  const before = event[name + "_before"];
  return (before === undefined ? "" : number(before) + " → ") + number(event[name]);
}

// Both strengths, 0 at the bottom and 1 at the top: they fade from event to event and are set at each.
function curves(moved) {
  const picture = document.createElementNS(DRAWING, "svg");
  picture.setAttribute("viewBox", "0 0 400 100");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  picture.setAttribute("class", "curves");
  picture.setAttribute("aria-label", "Fast (blue) and slow (orange) strength, from event to event");
  const step = 390 / Math.max(moved.length - 1, 1);
  for (const [name, colour] of [["fast", "#1f5fbf"], ["slow", "#d9822b"]]) {
    const points = [];
    moved.forEach((event, i) => {
      for (const value of [event[name + "_before"], event[name]]) {
        if (value !== undefined) points.push((5 + i * step).toFixed(1) + "," + (95 - 90 * value).toFixed(1));
      }
    });
    const line = document.createElementNS(DRAWING, "polyline");
    const looks = { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": "2", "vector-effect": "non-scaling-stroke" };
    for (const [key, value] of Object.entries(looks)) line.setAttribute(key, value);
    picture.append(line);
  }
  return picture;
}

function correct(memory, made, below, status) {
  const content = make("div");
  const text = make("textarea");
  text.rows = 3;
  text.value = memory.memory;
  text.setAttribute("aria-label", "What holds now");
  const save = button("Save", status, async () => {
    const newer = await ask("PUT", at(memory), { text: text.value }, names());
    made.replaceWith(card(newer));
    say(element("status"), "Corrected; the history has both.");
  });
  content.append(text, save);
  show(below, "Correct", content);
}

function forget(memory, made, status) {
  let isSure = false;
  return button("Forget", status, async (pressed) => {
    if (!isSure) {
      isSure = true;
      pressed.textContent = "Forget for good?";
      pressed.classList.add("danger");
      return;
    }
    await ask("DELETE", at(memory), undefined, names());
    made.remove();
    say(element("status"), "Forgotten; nothing of it remains.");
  });
}

// Many memories

let listed = 0;

function showAll(memories, said, append = false) {
  const place = element("memories");
  if (!append) place.replaceChildren();
  place.append(...memories.map(card));
  element("more").hidden = true;
  say(element("status"), said);
}

async function list(append) {
  if (!append) listed = 0;
  const { results } = await ask("GET", "/memories", undefined, { ...names(), limit: PAGE, offset: listed });
  listed += results.length;
  showAll(results, listed + " memories, the oldest first.", append);
  element("more").hidden = results.length < PAGE;
}

connect(element("search"), element("status"), async () => {
  const { results } = await ask("POST", "/search", { query: element("query").value, explain: true, ...names() });
  showAll(results, results.length + " results.");
});
connect(element("list"), element("status"), () => list(false));
connect(element("more"), element("status"), () => list(true));
connect(element("documents"), element("status"), async () => {
  const { results } = await ask("GET", "/documents", undefined, { shared: true });
  showAll(results, results.length + " shared documents.");
});
connect(element("add"), element("added"), async () => {
  const body = { messages: element("text").value, ...names() };
  if (element("fact").value.trim()) body.key = element("fact").value;
  const { results } = await ask("POST", "/memories", body);
  element("text").value = "";
  element("fact").value = "";
  say(element("added"), "Remembered.");
  showAll(results, "Just remembered:");
});
element("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter") element("search").click();
});
