// The official Node client of OpenAI against `lam serve`:
//
//     npm install openai
//     node examples/serving/client.mjs [http://127.0.0.1:8080]
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8080";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "no-key-is-needed-on-this-machine" });
const input = ["A man is playing a guitar on the street.", "Someone performs music outdoors."];
const { data, usage } = await client.embeddings.create({ model: "LAM-base-v1", input });
const similarity = data[0].embedding.reduce((sum, x, i) => sum + x * data[1].embedding[i], 0);
console.log(`similarity ${similarity.toFixed(3)}, ${usage.total_tokens} tokens`);
