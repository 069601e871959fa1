// LAM in a browser: texts to embeddings by onnxruntime-web. The graph pools and normalises.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";

const BUDGET = 1024; // tokens that go through the model at once

export class Encoder {
  // folder: the address of what `lam export-onnx` wrote.
  static async load(folder) {
    const [tokenizer, settings] = await Promise.all(
      ["tokenizer.json", "tokenizer_config.json"].map(async (name) => (await fetched(`${folder}/${name}`)).json()),
    );
    const model = new Uint8Array(await (await fetched(`${folder}/model.onnx`)).arrayBuffer());
    // Threads need headers that a plain file server does not send (cross-origin isolation).
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return new Encoder(new Tokenizer(tokenizer, settings), session);
  }

  constructor(tokenizer, session) {
    this.tokenizer = tokenizer;
    this.session = session;
  }

  // Embeddings of texts, a Float32Array each; told() hears after each batch how many texts and tokens are done.
  async encode(texts, told = () => {}) {
    const ids = texts.map((text) => this.tokenizer.encode(text).ids);
    const order = [...ids.keys()].sort((a, b) => ids[a].length - ids[b].length);
    const result = new Array(texts.length);
    let tokens = 0;
    for (let start = 0; start < order.length; ) {
      let end = start + 1;
      while (end < order.length && (end + 1 - start) * ids[order[end]].length <= BUDGET) end++;
      const rows = order.slice(start, end);
      const embeddings = await this.run(rows.map((i) => ids[i]));
      rows.forEach((i, row) => (result[i] = embeddings[row]));
      tokens += rows.reduce((sum, i) => sum + ids[i].length, 0);
      start = end;
      told(start, tokens);
      await new Promise((done) => setTimeout(done)); // the page stays alive
    }
    return result;
  }

  async run(rows) {
    const longest = Math.max(...rows.map((row) => row.length));
    const shape = [rows.length, longest];
    const ids = new BigInt64Array(rows.length * longest);
    const mask = new BigInt64Array(rows.length * longest);
    rows.forEach((row, i) =>
      row.forEach((id, j) => {
        ids[i * longest + j] = BigInt(id);
        mask[i * longest + j] = 1n;
      }),
    );
    const given = {
      input_ids: new ort.Tensor("int64", ids, shape),
      attention_mask: new ort.Tensor("int64", mask, shape),
    };
    const { data, dims } = (await this.session.run(given, ["sentence_embedding"])).sentence_embedding;
    return rows.map((_, i) => data.slice(i * dims[1], (i + 1) * dims[1]));
  }
}

export function similarity(a, b) {
  return a.reduce((sum, x, i) => sum + x * b[i], 0);
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} is not there (${answer.status}).`);
  return answer;
}
