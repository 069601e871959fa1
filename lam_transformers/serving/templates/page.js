"use strict";

const element = (id) => document.getElementById(id);
const SHOWN = 5; // passages that are highlighted

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const key = element("key");
  if (key && key.value) headers["Authorization"] = "Bearer " + key.value;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const result = await answer.json();
  if (!answer.ok) {
    const error = new Error(typeof result.error === "string" ? result.error : "The server answered " + answer.status);
    error.status = answer.status;
    throw error;
  }
  return result;
}

function say(id, text, wrong = false) {
  element(id).textContent = text;
  element(id).classList.toggle("wrong", wrong);
}

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

async function compare() {
  const inputs = { source_sentence: element("first").value, sentences: [element("second").value] };
  const [score] = await ask("/similarity", { inputs });
  say("score", "Similarity " + score.toFixed(3));
}

// The sentences of a text and their vectors: a LAM reads them in the light of what comes before, another model one by one.
async function passagesOf(text) {
  try {
    const answer = await ask("/late-chunks", { text, boundaries: "sentence", encoding_format: "base64" });
    return answer.chunks.map((chunk) => ({ ...chunk, vector: numbers(chunk.embedding) }));
  } catch (error) {
    if (error.status !== 501) throw error;
  }
  const letters = Array.from(text);
  const spans = [];
  let start = 0;
  letters.forEach((letter, i) => {
    if (i + 1 < letters.length && !(".!?\n".includes(letter) && /\s/.test(letters[i + 1]))) return;
    if (letters.slice(start, i + 1).join("").trim()) spans.push({ start, end: i + 1 });
    start = i + 1;
  });
  const vectors = await ask("/embed", { inputs: spans.map((span) => letters.slice(span.start, span.end).join("")), truncate: true });
  return spans.map((span, i) => ({ ...span, vector: vectors[i] }));
}

async function search() {
  const text = element("document").value;
  element("passages").replaceChildren();
  say("status", "Reading …");
  const start = performance.now();
  const question = await ask("/embed", { inputs: element("question").value });
  const chunks = await passagesOf(text);
  const scores = chunks.map((chunk) => dot(chunk.vector, question[0]));
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]).slice(0, SHOWN);
  // The server counts characters by code points, a browser by halves of them where a letter needs two.
  const letters = Array.from(text);
  const passages = element("passages");
  let at = 0;
  const plain = (end) => {
    passages.append(letters.slice(at, end).join(""));
    at = end;
  };
  chunks.forEach((chunk, i) => {
    plain(chunk.start);
    if (!order.includes(i)) return;
    const mark = document.createElement("mark");
    if (i === order[0]) mark.className = "best";
    mark.textContent = letters.slice(chunk.start, chunk.end).join("");
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = " " + scores[i].toFixed(2);
    passages.append(mark, number);
    at = chunk.end;
  });
  plain(letters.length);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say("status", chunks.length + " passages read in " + seconds + " s.");
  const best = passages.querySelector("mark.best");
  if (best) best.scrollIntoView({ block: "nearest" });
}

function connect(button, place, action) {
  element(button).addEventListener("click", async () => {
    element(button).disabled = true;
    try {
      await action();
    } catch (error) {
      say(place, error.message, true);
    } finally {
      element(button).disabled = false;
    }
  });
}

connect("compare", "score", compare);
connect("search", "status", search);
