// One message on the page.

import { announce, copyText, el, icon, iconButton } from "../dom.js";
import { wordsOf } from "../chat/errors.js";
import { MarkdownView } from "../markdown/stream.js";
import { count, duration } from "./words.js";

const ENDINGS = {
  cut: "Cut off: no tokens were left for it.",
  stopped: "Stopped.",
  repeating: "Ended, since it repeated itself.",
};

export class MessageView {
  #editing = false;

  /** @param {Chat} chat @param {object} message whose state is shown by update() */
  constructor(chat, message) {
    this.chat = chat;
    this.id = message.id;
    this.role = message.role;
    const user = message.role === "user";
    this.body = el("div", user ? { class: "bubble", dir: "auto" } : { class: "markdown" });
    this.foot = el("div", { class: "foot" });
    this.element = el("article", { class: `message ${message.role}`, "data-id": message.id });
    this.element.append(el("h2", { class: "unseen" }, user ? "You" : "Answer"));
    if (user) this.element.append(this.body, this.foot);
    else this.#answerParts();
  }

  #answerParts() {
    this.view = new MarkdownView(this.body);
    this.thought = el("div", { class: "thought", dir: "auto" });
    this.summary = el("span");
    this.thinking = el("details", { class: "thinking", hidden: true });
    this.thinking.append(el("summary", {}, icon("chevron"), this.summary), this.thought);
    this.waiting = el("p", { class: "waiting", hidden: true }, el("span", { class: "dots" }), el("span"));
    this.problem = el("div", { class: "problem", hidden: true });
    this.element.append(this.thinking, this.body, this.waiting, this.problem, this.foot);
  }

  /** Show the message as it is. `versions`: ids of all its versions; `last`: nothing follows it. */
  update(message, { versions, last }) {
    this.message = message;
    if (this.role === "user") {
      if (!this.#editing && this.body.textContent !== message.content) this.body.textContent = message.content;
      this.#foot(versions, last);
      return;
    }
    this.writing = this.chat.answer?.message === message;
    this.element.setAttribute("aria-busy", String(this.writing));
    this.grow();
    this.#problems();
    this.#foot(versions, last);
  }

  /** Show what has come since. */
  grow() {
    const { message } = this;
    this.view.update(message.content, this.writing);
    this.#think();
    this.tick();
  }

  #think() {
    const { thinking = "" } = this.message;
    const shown = this.thought.firstChild?.data ?? "";
    this.thinking.hidden = !thinking;
    if (!thinking || thinking === shown) return;
    if (shown && thinking.startsWith(shown)) this.thought.firstChild.appendData(thinking.slice(shown.length));
    else this.thought.textContent = thinking;
  }

  /** Show how much time has passed. */
  tick() {
    const { message, writing } = this;
    const { stats = {} } = message;
    const thinking = writing && message.thinking && !message.content;
    const time = stats.thinkMs === undefined ? "" : duration(stats.thinkMs);
    const past = time ? `Thought for ${time}` : "Thinking";
    this.summary.textContent = thinking ? `Thinking… ${time}` : past;
    this.thinking.classList.toggle("live", Boolean(thinking));
    const elsewhere = this.chat.isElsewhere(message);
    const silent = writing && !message.content && !message.thinking;
    this.waiting.hidden = !silent && !elsewhere;
    const since = writing ? performance.now() - (this.since ??= performance.now()) : 0;
    const words = elsewhere ? "Being written in another tab" : `Reading the question… ${since > 1500 ? duration(since) : ""}`;
    this.waiting.lastChild.textContent = words;
    this.#stats();
  }

  #problems() {
    const { message, chat } = this;
    const unfinished = message.state === "writing" && !this.writing && !chat.isElsewhere(message);
    const error = unfinished ? { kind: "closed", text: wordsOf("closed") } : message.error;
    const shown = message.state === "failed" || unfinished;
    const ending = ENDINGS[message.state];
    this.problem.hidden = !shown && !ending;
    if (this.problem.hidden) return;
    const again = chat.canGoOn(message)
      ? this.#button("forward", "Continue", () => chat.goOn(this.id))
      : this.#button("redo", "Try again", () => chat.regenerate(this.id));
    this.problem.className = shown ? "problem error" : "problem";
    const text = el("p", { dir: "auto" }, shown ? error?.text ?? wordsOf("failed") : ending);
    this.problem.replaceChildren(shown ? icon("attention") : "", text, again);
    if (shown) this.problem.setAttribute("role", "alert");
    else this.problem.removeAttribute("role");
    if (shown && error?.detail) text.append(el("span", { class: "detail" }, error.detail));
  }

  #button(picture, label, action) {
    return el("button", { type: "button", onclick: action }, icon(picture), label);
  }

  #foot(versions, last) {
    const { chat, message } = this;
    this.foot.replaceChildren();
    if (this.writing) this.foot.append((this.line = el("span", { class: "stats" })));
    else this.#actions(versions, last);
    this.#stats();
    this.foot.hidden = this.#editing || chat.isElsewhere(message);
  }

  #actions(versions, last) {
    const { chat, foot } = this;
    const free = !chat.answer;
    if (versions.length > 1) foot.append(this.#pager(versions, free));
    const copy = iconButton("copy", this.role === "user" ? "Copy the question" : "Copy the answer", () => this.copy());
    copy.classList.add("copy");
    if (this.message.content) foot.append(copy);
    if (this.role === "user") foot.append(iconButton("edit", "Edit and send again", () => this.edit(), { disabled: !free }));
    else {
      foot.append(iconButton("redo", "Another answer", () => chat.regenerate(this.id), { disabled: !free, class: "quiet again" }));
      this.line = el("span", { class: "stats" });
      foot.append(this.line);
    }
    this.element.classList.toggle("last", last);
  }

  #pager(versions, free) {
    const at = versions.indexOf(this.id);
    const turn = (picture, label, to) =>
      iconButton(picture, label, () => this.chat.select(versions[to]), { disabled: !free || versions[to] === undefined });
    const label = el("span", {}, `${at + 1} / ${versions.length}`);
    const what = `Versions, ${at + 1} of ${versions.length}`;
    return el(
      "span",
      { class: "pager", role: "group", "aria-label": what },
      turn("left", "Earlier version", at - 1),
      label,
      turn("right", "Later version", at + 1),
    );
  }

  #stats() {
    const { stats } = this.message;
    if (!this.line || !stats?.tokens) return;
    const parts = [];
    if (stats.perSecond) parts.push(`${stats.perSecond.toFixed(1)} tokens/s`);
    parts.push(count(stats.tokens, "token"));
    if (!this.writing && stats.firstMs !== undefined) parts.push(`first after ${duration(stats.firstMs)}`);
    this.line.textContent = parts.join(" · ");
    const cached = stats.prompt ? `${count(stats.prompt, "token")} of prompt, ${stats.cached} of them known from before` : "";
    this.line.title = [this.message.model, cached].filter(Boolean).join(" · ");
  }

  async copy() {
    const done = await copyText(this.message.content);
    announce(done ? "Copied" : "The browser does not allow copying");
    const button = this.foot.querySelector(".copy");
    button?.replaceChildren(icon(done ? "check" : "attention"));
    setTimeout(() => button?.replaceChildren(icon("copy")), 1500);
  }

  /** Let the question be written anew. */
  edit() {
    const field = el("textarea", { "aria-label": "Edit the question", dir: "auto", rows: "3" });
    field.value = this.message.content;
    const close = () => {
      this.#editing = false;
      box.replaceWith(this.body);
      this.foot.hidden = false;
    };
    const send = () => {
      if (!field.value.trim() || this.chat.answer) return;
      close();
      this.chat.edit(this.id, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
        this.foot.querySelector("[title^=Edit]")?.focus();
      }
    });
    const cancel = el("button", { type: "button", onclick: close }, "Cancel");
    const ok = el("button", { type: "button", class: "primary", onclick: send }, "Send");
    const box = el("div", { class: "editor" }, field, el("div", { class: "row" }, cancel, ok));
    this.#editing = true;
    this.foot.hidden = true;
    this.body.replaceWith(box);
    field.style.height = `${Math.min(field.scrollHeight + 4, innerHeight / 2)}px`;
    field.focus();
  }
}
