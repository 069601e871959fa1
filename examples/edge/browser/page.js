import { Encoder, similarity } from "./lam.js";

const element = (id) => document.getElementById(id);
const LONGEST = 1200; // characters of a passage, about
let encoder;
let passages = [];
let embeddings = [];

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").className = wrong ? "wrong" : "";
}

async function trying(work) {
  for (const id of ["read", "search"]) element(id).disabled = true;
  try {
    await work();
  } catch (error) {
    say(String(error.message ?? error), true);
  }
  element("read").disabled = !encoder;
  element("search").disabled = !embeddings.length;
}

// Paragraphs; long ones are cut after a sentence.
function cut(text) {
  const result = [];
  for (let rest of text.split(/\n\s*\n/)) {
    rest = rest.trim();
    while (rest.length > LONGEST) {
      const end = Math.max(rest.lastIndexOf(". ", LONGEST) + 1, rest.lastIndexOf("\n", LONGEST)) || LONGEST;
      result.push(rest.slice(0, end).trim());
      rest = rest.slice(end).trim();
    }
    if (rest) result.push(rest);
  }
  return result;
}

async function read() {
  passages = cut(element("book").value);
  embeddings = [];
  element("results").replaceChildren();
  if (!passages.length) throw new Error("There is no text to read.");
  const began = performance.now();
  embeddings = await encoder.encode(passages, (done, tokens) => {
    const seconds = (performance.now() - began) / 1000;
    element("progress").value = done / passages.length;
    say(`${done} of ${passages.length} passages, ${tokens} tokens in ${seconds.toFixed(1)} s`);
  });
}

async function search() {
  const question = element("question").value.trim();
  if (!question) throw new Error("There is no question.");
  const [asked] = await encoder.encode([question]);
  const scores = embeddings.map((embedding) => similarity(asked, embedding));
  const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 5);
  element("results").replaceChildren(
    ...best.map((i) => {
      const item = document.createElement("li");
      const score = document.createElement("b");
      score.textContent = `Similarity ${scores[i].toFixed(2)}, passage ${i + 1}`;
      item.append(score, passages[i]);
      return item;
    }),
  );
}

element("read").addEventListener("click", () => trying(read));
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(search);
});
element("file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) element("book").value = await file.text();
});
trying(async () => {
  encoder = await Encoder.load(new URLSearchParams(location.search).get("model") ?? "model");
  say("The model is loaded.");
});
