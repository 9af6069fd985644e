// The conversations and what is done with them. Views listen to its events:
// "list": the conversations are others; "open": another one is shown; "path": its messages are
// others; "progress": an answer has grown ({detail: message}).

import { shortened, wellFormed } from "../dom.js";
import { Answer, requestMessages } from "./answer.js";
import { Tree, newId } from "./tree.js";

const SAVE_MS = 1000;
// An answer that was not saved for so long is written by nobody any more.
const ALIVE_MS = 5000;
const TITLE = 60;

export class Chat extends EventTarget {
  #answers = new Map();

  /** The conversation that is shown: its record, null where it has not begun. */
  record = null;
  tree = new Tree();
  list = [];
  /** The instructions of a conversation that has not begun. */
  draftSystem = null;

  constructor({ store, server, settings, monitor }) {
    super();
    Object.assign(this, { store, server, settings, monitor });
    store.addEventListener("changed", () => this.refresh());
    store.addEventListener("elsewhere", ({ detail }) => this.#elsewhere(detail.id));
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async refresh() {
    this.list = await this.store.conversations();
    this.#emit("list");
  }

  async #elsewhere(id) {
    await this.refresh();
    if (this.record?.id !== id || this.answer) return;
    const record = this.list.find((item) => item.id === id);
    if (!record) return this.open(null);
    // What is shown stays: the other tab may look at another version.
    const { leaf } = this.record;
    this.tree = new Tree(await this.store.messages(id));
    this.record = { ...record, leaf: this.tree.messages.has(leaf) ? this.tree.newest(leaf) : record.leaf };
    this.#emit("path");
  }

  /** The answer that this page writes in the conversation that is shown, if any. */
  get answer() {
    return this.record ? this.#answers.get(this.record.id)?.answer : undefined;
  }

  isAnswering(id) {
    return this.#answers.has(id);
  }

  get path() {
    return this.record ? this.tree.path(this.record.leaf) : [];
  }

  get system() {
    return this.record?.system ?? this.draftSystem ?? this.settings.values.system;
  }

  async setSystem(text) {
    if (!this.record) this.draftSystem = wellFormed(text);
    else {
      this.record.system = wellFormed(text);
      await this.store.put(this.record);
    }
  }

  /** Show a conversation, or an empty one. */
  async open(id) {
    const running = this.#answers.get(id);
    const record = running?.record ?? this.list.find((item) => item.id === id) ?? null;
    this.record = record;
    this.draftSystem = null;
    this.tree = running?.tree ?? new Tree(record ? await this.store.messages(record.id) : []);
    if (record && !this.tree.messages.has(record.leaf)) record.leaf = this.tree.newest();
    if (this.record === record) this.#emit("open");
  }

  /** Return whether somebody may still be writing a message that this page does not write. */
  isElsewhere(message) {
    return message.state === "writing" && this.answer?.message !== message && Date.now() - message.saved < ALIVE_MS;
  }

  /** Ask a question behind the last message, or behind another one; it is answered. */
  async send(text, parent = this.record?.leaf ?? null) {
    const content = wellFormed(text);
    const now = Date.now();
    if (!this.record) {
      const title = shortened(content.trim().split("\n")[0], TITLE);
      this.record = { id: newId(), title, created: now, changed: now, system: this.system, leaf: null };
    }
    const question = this.#message("user", parent, { content, state: "done" });
    this.record.leaf = question.id;
    await this.#answerTo(question);
  }

  #message(role, parent, fields) {
    const message = { id: newId(), conversation: this.record.id, parent, role, content: "", created: Date.now(), ...fields };
    this.tree.add(message);
    return message;
  }

  /** Ask a question again in other words; the old one stays as another version. */
  edit(id, text) {
    return this.send(text, this.tree.messages.get(id).parent);
  }

  /** Have another version of an answer written. */
  async regenerate(id) {
    const question = this.tree.messages.get(this.tree.messages.get(id).parent);
    if (question) await this.#answerTo(question);
  }

  async #answerTo(question) {
    const model = this.monitor.model;
    const message = this.#message("assistant", question.id, { thinking: "", stats: {}, model });
    this.record.leaf = message.id;
    await this.#write(message, false, [question, message]);
  }

  /** Have an answer that was cut off go on. */
  async goOn(id) {
    const message = this.tree.messages.get(id);
    await this.#write(message, true, [message]);
  }

  /** Return whether an answer can go on. */
  canGoOn(message) {
    const cut = ["cut", "stopped", "failed", "repeating", "writing"].includes(message.state);
    return cut && Boolean(message.content || message.thinking);
  }

  async #write(message, goesOn, changed) {
    const { record, tree } = this;
    if (this.#answers.has(record.id)) return;
    const answer = new Answer(message);
    const messages = requestMessages(record.system, tree.path(goesOn ? message.id : message.parent), goesOn);
    const body = { ...this.settings.request(), messages };
    const running = { answer, record, tree, removed: false };
    this.#answers.set(record.id, running);
    record.changed = Date.now();
    this.#emit("path");
    await this.#save(record, changed);
    let saved = performance.now();
    await answer.run(this.server, body, () => {
      if (performance.now() - saved > SAVE_MS && message.state === "writing" && !running.removed) {
        saved = performance.now();
        this.#save(null, [message]);
      }
      if (this.record === record) this.#emit("progress", message);
    });
    this.#answers.delete(record.id);
    if (message.error) this.monitor.noticed(message.error.kind);
    record.changed = Date.now();
    if (this.record === record) this.#emit("path");
    this.#emit("answered", { record, message });
    if (!running.removed) await this.#save(record, [message]);
  }

  #save(record, messages) {
    for (const message of messages) message.saved = Date.now();
    return this.store.put(record, messages);
  }

  stop() {
    this.answer?.stop();
  }

  /** Show another version of a message, with what follows it. */
  async select(id) {
    this.record.leaf = this.tree.newest(id);
    await this.store.put(this.record);
    this.#emit("path");
  }

  async rename(id, title) {
    const record = this.record?.id === id ? this.record : this.list.find((item) => item.id === id);
    const name = shortened(wellFormed(title).trim(), 200);
    if (!record || !name) return;
    record.title = name;
    await this.store.put(record);
    this.#emit("title");
  }

  /** Remove a conversation; return what puts it back. */
  async remove(id) {
    const record = this.list.find((item) => item.id === id);
    const running = this.#answers.get(id);
    if (running) {
      // Its end must not bring the conversation back.
      running.removed = true;
      running.answer.stop();
    }
    const messages = await this.store.messages(id);
    await this.store.remove(id);
    const shown = this.record?.id === id;
    if (shown) await this.open(null);
    return async () => {
      await this.store.put(record, messages);
      await this.refresh();
      if (shown && !this.record) await this.open(id);
    };
  }
}
