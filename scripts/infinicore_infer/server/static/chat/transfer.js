// Conversations as files: JSON, which can be read back, and Markdown, for people.

import { wellFormed } from "../dom.js";
import { Tree, newId } from "./tree.js";

const FORMAT = "infinicore_infer.chat";
const MOST_BYTES = 256 << 20;
const STATES = new Set(["done", "stopped", "cut", "failed", "repeating"]);

/** Return conversations as JSON. */
export async function exportJson(store, records) {
  const conversations = [];
  for (const record of records) conversations.push({ ...record, messages: await store.messages(record.id) });
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** Return what is shown of a conversation as Markdown. */
export function exportMarkdown(record, path) {
  const parts = [`# ${record.title}`];
  if (record.system.trim()) parts.push(`## Instructions\n\n${record.system.trim()}`);
  for (const message of path) {
    const body = message.content.trim() || "*(no answer)*";
    parts.push(`## ${message.role === "user" ? "You" : message.model || "Answer"}\n\n${body}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return a name for a file. */
export const fileName = (title, end) => `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "chat"}.${end}`;

const text = (value) => (typeof value === "string" ? wellFormed(value) : "");
const time = (value) => (Number.isFinite(value) ? value : Date.now());

/** Return the numbers among the values of an object. */
function numbers(value) {
  const entries = Object.entries(value && typeof value === "object" ? value : {});
  return Object.fromEntries(entries.filter(([, entry]) => Number.isFinite(entry)).slice(0, 20));
}

/** Return a conversation of a file with ids of its own, or throw Error with what is wrong. */
function adopt(item, where) {
  if (!item || typeof item !== "object" || !Array.isArray(item.messages)) throw new Error(`${where} has no messages`);
  const ids = new Map();
  const fresh = (id) => ids.get(id) ?? ids.set(id, newId()).get(id);
  const id = newId();
  const sorted = [...item.messages].sort((a, b) => (String(a?.id) < String(b?.id) ? -1 : 1));
  // Their order is that of their ids, so the new ones are made in that order.
  for (const message of sorted) fresh(message?.id);
  const messages = sorted.map((message, i) => {
    const role = message?.role;
    if (role !== "user" && role !== "assistant") throw new Error(`${where}, message ${i + 1}: the role ${JSON.stringify(role)} is not known`);
    if (typeof message.content !== "string") throw new Error(`${where}, message ${i + 1}: the content is no text`);
    return {
      id: fresh(message.id),
      conversation: id,
      parent: ids.get(message.parent) ?? null,
      role,
      content: text(message.content),
      thinking: text(message.thinking),
      created: time(message.created),
      state: STATES.has(message.state) ? message.state : "done",
      stats: numbers(message.stats),
      model: text(message.model),
    };
  });
  const tree = new Tree(messages);
  const leaf = ids.get(item.leaf) ?? tree.newest();
  const title = text(item.title).trim() || "Imported conversation";
  const record = { id, title, created: time(item.created), changed: time(item.changed), system: text(item.system), leaf };
  return { record, messages };
}

/** Add the conversations of a file; return their records, or throw Error with what is wrong, adding none. */
export async function importFile(store, file) {
  if (file.size > MOST_BYTES) throw new Error(`the file has ${file.size} bytes; at most ${MOST_BYTES} are read`);
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch (error) {
    throw new Error(`it is no JSON: ${error.message}`);
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations))
    throw new Error("it was not exported by this page (there is no \"format\": \"infinicore_infer.chat\")");
  const adopted = value.conversations.map((item, i) => adopt(item, `conversation ${i + 1}`));
  for (const { record, messages } of adopted) await store.put(record, messages);
  return adopted.map(({ record }) => record);
}
