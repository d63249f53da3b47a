// Streams with the OpenAI SDK for Node, as its users do, and prints what it saw as one JSON line.
import OpenAI from "openai";

const { BASE_URL, TOKEN, MODEL } = process.env;
const client = new OpenAI({ apiKey: TOKEN, baseURL: BASE_URL, maxRetries: 0 });
const asked = {
  model: MODEL,
  messages: [{ role: "user", content: "Write a haiku about APIs" }],
  max_tokens: 12,
};

const { data: stream, response } = await client.chat.completions
  .create({ ...asked, stream: true, stream_options: { include_usage: true } })
  .withResponse();
let text = "";
let finishReason = null;
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  finishReason = chunk.choices[0]?.finish_reason ?? finishReason;
  usage = chunk.usage ?? usage;
}

const stranger = new OpenAI({ apiKey: "tw_wrong", baseURL: BASE_URL, maxRetries: 0 });
const refused = await stranger.chat.completions
  .create(asked)
  .catch((error) => ({ status: error.status, name: error.constructor.name, code: error.code }));

console.log(
  JSON.stringify({
    text,
    finishReason,
    usage,
    reserved: Number(response.headers.get("x-credits-reserved")),
    refused,
  }),
);
