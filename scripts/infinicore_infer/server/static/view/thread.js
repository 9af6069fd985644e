// The messages of the conversation that is shown.

import { announce, byId, copyText, el, icon, iconButton, shortened } from "../dom.js";
import { MessageView } from "./message.js";

// Messages that are shown at first, and more each time.
const SOME = 40;
// Near the end, the page follows an answer.
const NEAR = 80;
// Of the time, at most this part goes into showing what has come.
const SHARE = 0.25;

export class Thread {
  #views = new Map();
  #shown = SOME;
  #frame = 0;
  #notBefore = 0;
  #ticker = 0;
  #follow = true;

  constructor(chat, greeting) {
    this.chat = chat;
    this.greeting = greeting;
    this.log = byId("log");
    this.list = el("div", { class: "thread" });
    this.earlier = el("button", { type: "button", class: "earlier", hidden: true, onclick: () => this.#more() }, "Show earlier messages");
    this.jump = iconButton("down", "To the end", () => this.toEnd(), { id: "jump", hidden: true });
    this.log.append(this.greeting, this.earlier, this.list);
    this.log.after(this.jump);
    this.log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.log.addEventListener("click", (event) => this.#copyCode(event));
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#more()).observe(this.earlier);
    chat.addEventListener("open", () => this.#open());
    chat.addEventListener("path", () => this.show());
    chat.addEventListener("progress", () => this.#schedule());
    chat.addEventListener("answered", ({ detail }) => this.#say(detail.message));
  }

  #open() {
    this.#shown = SOME;
    this.#views.clear();
    this.list.replaceChildren();
    this.show();
    this.toEnd();
    // Messages get their real heights when they come into view.
    requestAnimationFrame(() => requestAnimationFrame(() => this.#keepUp()));
  }

  /** Show the messages as they are; those that are known keep their elements. */
  show() {
    const { chat } = this;
    const path = chat.path;
    const asked = path.at(-1)?.role === "assistant" && chat.answer && !this.#views.has(path.at(-1).id);
    const part = path.slice(-this.#shown);
    this.greeting.hidden = path.length > 0;
    this.earlier.hidden = part.length === path.length;
    const kept = new Set(part.map((message) => message.id));
    for (const [id, view] of this.#views)
      if (!kept.has(id)) {
        view.element.remove();
        this.#views.delete(id);
      }
    let before = null;
    for (const message of part) {
      const view = this.#view(message);
      const place = before ? before.nextSibling : this.list.firstChild;
      if (view.element !== place) this.list.insertBefore(view.element, place);
      view.update(message, { versions: chat.tree.versions(message.id), last: message === part.at(-1) });
      before = view.element;
    }
    // A question that was just asked is looked at, wherever one was before.
    if (asked) this.#follow = true;
    this.#keepUp();
    clearInterval(this.#ticker);
    if (path.some((message) => message.state === "writing")) this.#ticker = setInterval(() => this.#tick(), 500);
  }

  #view(message) {
    if (!this.#views.has(message.id)) this.#views.set(message.id, new MessageView(this.chat, message));
    return this.#views.get(message.id);
  }

  #tick() {
    const { answer } = this.chat;
    if (answer) this.#views.get(answer.message.id)?.tick();
    // Another tab's answer may have come to an end without a word: that tab was closed.
    else this.show();
  }

  /** Show what has come, with the next frame, but not so often that nothing else gets its turn. */
  #schedule() {
    if (this.#frame) return;
    const paint = () => {
      if (performance.now() < this.#notBefore) {
        this.#frame = requestAnimationFrame(paint);
        return;
      }
      this.#frame = 0;
      const begin = performance.now();
      const view = this.#views.get(this.chat.answer?.message.id);
      view?.grow();
      this.#keepUp();
      const spent = performance.now() - begin;
      this.#notBefore = begin + spent / SHARE;
    };
    // Pages in the background get no frames; they are brought up to date when they are looked at.
    this.#frame = requestAnimationFrame(paint);
  }

  get #distance() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight;
  }

  #scrolled() {
    this.#follow = this.#distance < NEAR;
    this.jump.hidden = this.#distance < 2 * NEAR;
  }

  #keepUp() {
    if (this.#follow) this.log.scrollTop = this.log.scrollHeight;
    this.jump.hidden = this.#follow || this.#distance < 2 * NEAR;
  }

  toEnd() {
    this.#follow = true;
    this.#keepUp();
  }

  #more() {
    if (this.earlier.hidden) return;
    const { scrollHeight, scrollTop } = this.log;
    this.#shown += SOME;
    this.show();
    this.log.scrollTop = scrollTop + this.log.scrollHeight - scrollHeight;
  }

  async #copyCode(event) {
    const button = event.target.closest?.(".copy-code");
    if (!button) return;
    const done = await copyText(button.closest("figure").querySelector("code").textContent);
    announce(done ? "Code copied" : "The browser does not allow copying");
    button.replaceChildren(icon(done ? "check" : "attention"), el("span", {}, done ? "Copied" : "Not allowed"));
    setTimeout(() => button.replaceChildren(icon("copy"), el("span", {}, "Copy")), 1500);
  }

  #say(message) {
    if (message.error) return;
    announce(`The answer is complete. ${shortened(message.content, 300)}`);
  }

  /** Begin to edit the last question. */
  editLast() {
    const last = this.chat.path.findLast((message) => message.role === "user");
    if (last && !this.chat.answer) this.#views.get(last.id)?.edit();
  }

  copyLast() {
    const last = this.chat.path.findLast((message) => message.role === "assistant");
    this.#views.get(last?.id)?.copy();
  }
}
