// Where questions are written.

import { byId, el, icon } from "../dom.js";
import { number } from "./words.js";

const DRAFT = "infinicore_infer.draft.";

export class Composer {
  constructor({ chat, settings, monitor, thread }) {
    Object.assign(this, { chat, settings, monitor, thread });
    this.field = el("textarea", { id: "text", rows: "1", dir: "auto", "aria-label": "Your message", placeholder: "Ask something", enterkeyhint: "send" });
    this.think = el("button", { type: "button", id: "think", class: "pill", onclick: () => this.#toggle() }, icon("brain"), "Think");
    this.meter = el("span", { id: "meter", hidden: true }, el("span", { class: "gauge" }, el("span")), el("span", { class: "share" }));
    this.send = el("button", { id: "send", class: "round", title: "Send (Enter)", "aria-label": "Send" }, icon("send"));
    this.stop = el("button", { id: "stop", type: "button", class: "round", title: "Stop (Escape)", "aria-label": "Stop", hidden: true, onclick: () => chat.stop() }, icon("stop"));
    const tools = el("div", { class: "tools" }, this.think, this.meter, el("span", { class: "space" }), this.stop, this.send);
    this.form = byId("form");
    this.form.append(el("div", { class: "box" }, this.field, tools));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("input", () => this.#changed());
    for (const type of ["open", "path"]) chat.addEventListener(type, () => this.show());
    chat.addEventListener("open", () => this.#load());
    chat.addEventListener("progress", () => this.#meter());
    settings.addEventListener("change", () => this.show());
    monitor.addEventListener("change", () => this.show());
    this.show();
    this.#changed();
  }

  #toggle() {
    this.settings.set({ think: !this.settings.values.think });
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !this.field.value) {
      event.preventDefault();
      this.thread.editLast();
    }
  }

  submit() {
    const text = this.field.value;
    if (!text.trim() || this.chat.answer) return;
    this.field.value = "";
    this.#changed();
    this.thread.toEnd();
    this.chat.send(text);
    this.field.focus();
  }

  /** Put a text into the field. */
  write(text) {
    this.field.value = text;
    this.#changed();
    this.field.focus();
  }

  #place() {
    return DRAFT + (this.chat.record?.id ?? "new");
  }

  #load() {
    try {
      this.field.value = sessionStorage.getItem(this.#place()) ?? "";
    } catch {
      // Storage is forbidden: there are no drafts.
    }
    this.#size();
  }

  #changed() {
    try {
      // Long drafts would cost a write of all of it with every key.
      if (this.field.value && this.field.value.length < 20000) sessionStorage.setItem(this.#place(), this.field.value);
      else sessionStorage.removeItem(this.#place());
    } catch {
      // As above.
    }
    this.#size();
  }

  #size() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
    this.send.disabled = !this.field.value.trim();
  }

  show() {
    const answering = Boolean(this.chat.answer);
    const hadFocus = document.activeElement === this.stop;
    this.stop.hidden = !answering;
    this.send.hidden = answering;
    if (hadFocus && !answering) this.field.focus();
    this.think.setAttribute("aria-pressed", String(this.settings.values.think));
    this.think.title = this.settings.values.think ? "It thinks before it answers" : "It answers at once";
    this.#meter();
  }

  #meter() {
    const used = this.chat.path.findLast((message) => message.stats?.used)?.stats.used;
    const { context } = this.monitor;
    this.meter.hidden = !used || !context;
    if (this.meter.hidden) return;
    const share = Math.min(1, used / context);
    const text = `${share < 0.1 ? (100 * share).toFixed(1) : Math.round(100 * share)} % of context`;
    this.meter.title = `${number(used)} of ${number(context)} tokens: what the model can read and write in one conversation`;
    this.meter.classList.toggle("full", share > 0.9);
    this.meter.firstChild.firstChild.style.width = `${Math.max(2, 100 * share)}%`;
    this.meter.lastChild.textContent = text;
  }
}
