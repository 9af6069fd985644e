// Ollama's client for JavaScript: chats and texts whole and streamed, thinking, tools, forms, errors.
//
//     npm install --prefix test/clients && node test/clients/ollama.mjs http://127.0.0.1:8000
//
// Prints nothing unless something is wrong; run.py calls it.

import assert from "node:assert/strict";
import { Ollama } from "ollama";

const model = "qwen3-tiny";
const ollama = new Ollama({ host: process.argv[2] });
const CAPITAL = [{ role: "user", content: "What is the capital of France?" }];
const ANSWER = "The capital of France is Paris.";
const common = { model, options: { temperature: 0, num_predict: 300 } };
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather for a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

async function joined(stream, text) {
  let whole = "";
  let count = 0;
  for await (const part of stream) {
    whole += text(part) ?? "";
    count += 1;
  }
  assert.ok(count > 3);
  return whole;
}

const whole = await ollama.chat({ ...common, messages: CAPITAL });
assert.equal(whole.message.content, ANSWER);
assert.match(whole.message.thinking, /Paris/);
assert.equal(whole.done_reason, "stop");
for (const [name, expected] of [["content", ANSWER], ["thinking", whole.message.thinking]]) {
  const stream = await ollama.chat({ ...common, messages: CAPITAL, stream: true });
  assert.equal(await joined(stream, (part) => part.message[name]), expected);
}
const quiet = await ollama.chat({ ...common, messages: CAPITAL, think: false });
assert.equal(quiet.message.thinking, undefined);
assert.equal(quiet.message.content, ANSWER);

const question = [{ role: "user", content: "What is the weather in Paris?" }];
const called = await ollama.chat({ ...common, messages: question, tools: [tool] });
assert.equal(called.message.tool_calls[0].function.name, "get_weather");
assert.equal(typeof called.message.tool_calls[0].function.arguments.city, "string");
const back = [...question, called.message, { role: "tool", content: "sunny", tool_name: "get_weather" }];
assert.ok((await ollama.chat({ ...common, messages: back, tools: [tool] })).done);

const format = {
  type: "object",
  properties: { capital: { type: "boolean" }, kind: { enum: ["city", "village"] } },
  required: ["capital", "kind"],
};
const formed = await ollama.chat({ ...common, messages: CAPITAL, format, think: false });
assert.equal(typeof JSON.parse(formed.message.content).capital, "boolean");

const text = await ollama.generate({ ...common, prompt: CAPITAL[0].content, think: false });
assert.equal(text.response, ANSWER);
const raw = await ollama.generate({
  model, prompt: "The capital of", raw: true, stream: true, options: { num_predict: 5 },
});
await joined(raw, (part) => part.response);

assert.equal((await ollama.list()).models[0].name, `${model}:latest`);
assert.ok((await ollama.ps()).models[0].size > 0);
assert.deepEqual((await ollama.show({ model })).capabilities, ["completion", "tools", "thinking"]);
assert.match((await ollama.version()).version, /^\d+\.\d+\.\d+$/);
assert.equal((await ollama.pull({ model })).status, "success");
for (const wrong of [
  () => ollama.chat({ ...common, model: "other", messages: CAPITAL }),
  () => ollama.chat({ ...common, model: "other", messages: CAPITAL, stream: true }),
  () => ollama.chat({ model, messages: CAPITAL, options: { top_p: 2 } }),
  () => ollama.embed({ model, input: "x" }),
  () => ollama.delete({ model }),
]) {
  await assert.rejects(wrong, (error) => error.name === "ResponseError" && error.error.length > 0);
}
// A client that stops a stream.
const options = { num_predict: 400, ignore_eos: true };
const stream = await ollama.generate({ model, prompt: "One", raw: true, stream: true, options });
await assert.rejects(async () => {
  for await (const part of stream) if (part) stream.abort();
}, { name: "AbortError" });
