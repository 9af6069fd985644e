// The AI SDK with its provider for Ollama, which Cline uses: text, thinking, tools, objects.
//
//     npm install --prefix test/clients && node test/clients/ollama_ai_sdk.mjs http://127.0.0.1:8000
//
// Prints nothing unless something is wrong; run.py calls it.

import assert from "node:assert/strict";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider-v2";
import { z } from "zod";

const model = createOllama({ baseURL: `${process.argv[2]}/api` })("qwen3-tiny");
const prompt = "What is the capital of France?";
const thinking = { ollama: { think: true, options: { num_ctx: 2048 } } };
const common = {
  model, temperature: 0, maxOutputTokens: 300, maxRetries: 0, providerOptions: thinking,
};
const whole = await generateText({ ...common, prompt });
assert.equal(whole.text, "The capital of France is Paris.");
assert.match(whole.reasoningText, /Paris/);
const pieces = [];
for await (const piece of streamText({ ...common, prompt }).textStream) pieces.push(piece);
assert.equal(pieces.join(""), whole.text);
assert.ok(pieces.length > 3);
const getWeather = tool({
  description: "Get the weather for a city.",
  inputSchema: z.object({ city: z.string().max(12) }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const called = await generateText({
  ...common,
  prompt: "What is the weather in Paris?",
  tools: { get_weather: getWeather },
  stopWhen: stepCountIs(2),
});
assert.equal(called.steps[0].toolCalls[0].toolName, "get_weather");
assert.equal(called.steps.length, 2);
const schema = z.object({ capital: z.boolean(), kind: z.enum(["city", "village"]) });
const brief = { ollama: { think: false } };
const formed = await generateObject({ ...common, providerOptions: brief, schema, prompt });
schema.parse(formed.object);
