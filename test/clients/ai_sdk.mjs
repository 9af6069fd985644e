// The AI SDK with each of its providers: text whole and streamed, tools, structured objects.
//
//     npm install --prefix test/clients && node test/clients/ai_sdk.mjs http://127.0.0.1:8000
//
// Prints nothing unless something is wrong; run.py calls it.

import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const MODEL = "qwen3-tiny";
const baseURL = `${process.argv[2]}/v1`;
const CAPITAL = "What is the capital of France?";
const ANSWER = "The capital of France is Paris.";
const WEATHER = "What is the weather in Paris?";
// Small enough for the demo model to come to an end.
const place = z.object({
  capital: z.boolean(),
  name: z.string().max(8),
  kind: z.enum(["city", "village"]),
  districts: z.number().int().min(1).max(20),
});
const getWeather = tool({
  description: "Get the weather for a city.",
  inputSchema: z.object({ city: z.string().max(12) }),
  execute: async ({ city }) => `sunny in ${city}`,
});
// Its provider for responses refers to stored items in the second step, which is its default.
const common = { temperature: 0, maxOutputTokens: 300, maxRetries: 0 };

async function text(model) {
  const whole = await generateText({ ...common, model, prompt: CAPITAL });
  assert.equal(whole.text, ANSWER);
  assert.equal(whole.finishReason, "stop");
  assert.equal(typeof whole.usage.inputTokens, "number");
  const stream = streamText({ ...common, model, prompt: CAPITAL });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  assert.equal(pieces.join(""), ANSWER);
  assert.ok(pieces.length > 3);
  assert.equal(await stream.finishReason, "stop");
  assert.deepEqual((await stream.warnings) ?? [], []);
}

async function tools(model) {
  const options = { ...common, model, prompt: WEATHER, tools: { get_weather: getWeather } };
  // The model calls as it likes, gets the result, and answers.
  const free = await generateText({ ...options, stopWhen: stepCountIs(2) });
  assert.equal(free.steps[0].toolCalls[0].toolName, "get_weather");
  assert.equal(typeof free.steps[0].toolCalls[0].input.city, "string");
  assert.equal(free.steps.length, 2);
  const forced = await generateText({ ...options, toolChoice: "required" });
  assert.equal(forced.toolCalls.length, 1);
  const named = { type: "tool", toolName: "get_weather" };
  const stream = streamText({ ...options, toolChoice: named });
  const kinds = new Set();
  for await (const part of stream.fullStream) {
    kinds.add(part.type);
    if (part.type === "error") throw part.error;
  }
  assert.ok(kinds.has("tool-call") && kinds.has("tool-input-delta"), [...kinds].join());
  assert.equal((await stream.toolResults)[0].output.slice(0, 5), "sunny");
}

async function objects(model) {
  const whole = await generateObject({ ...common, model, schema: place, prompt: CAPITAL });
  place.parse(whole.object);
  const stream = streamObject({ ...common, model, schema: place, prompt: CAPITAL });
  const partial = [];
  for await (const value of stream.partialObjectStream) partial.push(value);
  place.parse(await stream.object);
  assert.ok(partial.length > 1);
  const choice = await generateObject({
    ...common, model, output: "enum", enum: ["Paris", "Rome"], prompt: CAPITAL,
  });
  assert.ok(["Paris", "Rome"].includes(choice.object));
  const list = await generateObject({
    ...common, model, output: "array", schema: z.enum(["a", "b"]), prompt: CAPITAL,
    temperature: 1, seed: 1,
  }).catch((error) => error.finishReason);
  // So small a model may find no end to a list.
  assert.ok(list === "length" || Array.isArray(list.object), String(list));
  const output = await generateText({
    ...common, model, prompt: CAPITAL, output: Output.object({ schema: place }),
  });
  place.parse(output.output);
}

const openai = createOpenAI({ baseURL, apiKey: "none" });
const anthropic = createAnthropic({ baseURL, apiKey: "none" });
const compatible = (structured) => createOpenAICompatible({
  name: "local", baseURL, includeUsage: true, supportsStructuredOutputs: structured,
})(MODEL);
const models = {
  "openai responses": openai(MODEL),
  "openai chat": openai.chat(MODEL),
  "openai-compatible": compatible(true),
  anthropic: anthropic(MODEL),
};
const failures = [];
for (const [name, model] of Object.entries(models)) {
  for (const check of [text, tools, objects]) {
    try {
      await check(model);
    } catch (error) {
      failures.push(name);
      console.error(`${name}, ${check.name}:`, error);
    }
  }
}
process.exit(failures.length === 0 ? 0 : 1);
