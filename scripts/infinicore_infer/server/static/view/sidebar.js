// The list of conversations.

import { byId, download, el, icon, iconButton } from "../dom.js";
import { exportJson, exportMarkdown, fileName } from "../chat/transfer.js";
import { search } from "../chat/search.js";
import { Tree } from "../chat/tree.js";
import { openMenu } from "./menu.js";
import { toast } from "./toast.js";
import { dayOf } from "./words.js";

// Conversations that are listed before "Show more".
const SOME = 100;
const narrow = matchMedia("(max-width: 800px)");

export class Sidebar {
  #shown = SOME;
  #turn = 0;
  #renaming = null;

  constructor({ chat, settings, openSettings, openShortcuts }) {
    Object.assign(this, { chat, settings });
    this.list = byId("list");
    this.field = byId("search");
    const fresh = el("button", { type: "button", id: "new", title: "New conversation (Ctrl+Shift+O)", onclick: () => this.begin() }, icon("plus"), "New chat");
    byId("sidebar-head").append(fresh, iconButton("sidebar", "Hide the list", () => this.toggle(false)));
    byId("sidebar-foot").append(
      el("button", { type: "button", class: "quiet", id: "open-settings", onclick: openSettings }, icon("settings"), "Settings"),
      iconButton("keyboard", "Keyboard shortcuts", openShortcuts),
    );
    this.field.addEventListener("input", () => this.show());
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.field.value) return;
      event.stopPropagation();
      this.field.value = "";
      this.show();
    });
    byId("veil").addEventListener("click", () => this.toggle(false));
    narrow.addEventListener("change", () => this.place());
    for (const type of ["list", "open", "path", "answered", "title"]) chat.addEventListener(type, () => this.show());
    this.open = !narrow.matches && settings.values.sidebar;
    this.place();
  }

  /** Show or hide the list; as it is told, or the other way round. */
  toggle(open = !this.open) {
    this.open = open;
    if (!narrow.matches) this.settings.set({ sidebar: open });
    this.place();
    // The search field would bring up a phone's keyboard.
    if (narrow.matches && open) this.list.focus();
    if (!open) byId("menu").focus();
  }

  place() {
    document.body.classList.toggle("with-sidebar", this.open);
    byId("sidebar").inert = !this.open;
    // On a phone the list lies over everything else.
    byId("stage").inert = narrow.matches && this.open;
    byId("menu")?.setAttribute("aria-expanded", String(this.open));
  }

  find() {
    if (!this.open) this.toggle(true);
    this.field.focus();
    this.field.select();
  }

  begin() {
    this.#go(null);
  }

  #go(id) {
    this.chat.open(id);
    if (narrow.matches && this.open) this.toggle(false);
    if (!narrow.matches) byId("text").focus();
  }

  async show() {
    // A name that is being written is not taken away.
    if (this.#renaming) return;
    const turn = ++this.#turn;
    const query = this.field.value.trim();
    if (!query) {
      this.#fill(this.chat.list.map((record) => ({ record, excerpt: "" })));
      return;
    }
    const found = [];
    for await (const item of search(this.chat.store, this.chat.list, query, () => turn !== this.#turn)) {
      found.push(item);
      if (found.length >= SOME) break;
    }
    if (turn === this.#turn) this.#fill(found, `Nothing found for “${query}”`);
  }

  #fill(items, none = "Your conversations will be here. They stay in this browser.") {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const parts = [];
    let day = "";
    let group = null;
    for (const item of items.slice(0, this.#shown)) {
      const itsDay = dayOf(item.record.changed);
      if (itsDay !== day) {
        day = itsDay;
        group = el("ul", { "aria-label": day });
        parts.push(el("h2", {}, day), group);
      }
      group.append(this.#entry(item));
    }
    if (!parts.length) parts.push(el("p", { class: "none" }, none));
    if (items.length > this.#shown)
      parts.push(el("button", { type: "button", class: "quiet", onclick: () => ((this.#shown += SOME), this.show()) }, "Show more"));
    this.list.replaceChildren(...parts);
    if (focused) this.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  #entry({ record, excerpt }) {
    const current = this.chat.record?.id === record.id;
    const title = el("span", { class: "title", dir: "auto" }, record.title);
    const open = el("button", { type: "button", class: "entry", title: record.title, "data-key": record.id, onclick: () => this.#go(record.id) }, title);
    if (current) open.setAttribute("aria-current", "true");
    if (excerpt) open.append(el("span", { class: "excerpt", dir: "auto" }, excerpt));
    if (this.chat.isAnswering(record.id)) open.append(el("span", { class: "dots", role: "img", "aria-label": "Being answered" }));
    const more = iconButton("more", `Actions for ${record.title}`, () => openMenu(more, this.actions(record, item)), {
      class: "quiet more",
      "aria-haspopup": "menu",
      "aria-expanded": "false",
      "data-key": `${record.id} more`,
    });
    open.addEventListener("dblclick", () => this.#rename(record, item));
    open.addEventListener("keydown", (event) => {
      if (event.key === "F2") this.#rename(record, item);
      if (event.key === "Delete") this.remove(record);
    });
    const item = el("li", {}, open, more);
    return item;
  }

  /** Return the entries of a conversation's menu. `item`: its line in the list, where it has one. */
  actions(record, item) {
    return [
      ...(item ? [["edit", "Rename", () => this.#rename(record, item)]] : []),
      ["download", "Save as Markdown", () => this.#markdown(record)],
      ["download", "Save as JSON", () => this.#json(record)],
      ["trash", "Delete", () => this.remove(record)],
    ];
  }

  #rename(record, item) {
    const field = el("input", { type: "text", "aria-label": "Name of the conversation", dir: "auto", maxlength: "200" });
    field.value = record.title;
    this.#renaming = record;
    const end = (keep) => {
      if (!this.#renaming) return;
      this.#renaming = null;
      if (keep) this.chat.rename(record.id, field.value);
      this.show().then(() => this.list.querySelector(`[data-key="${CSS.escape(record.id)}"]`)?.focus());
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.focus();
    field.select();
  }

  async #markdown(record) {
    const path = this.chat.record?.id === record.id ? this.chat.path : new Tree(await this.chat.store.messages(record.id)).path(record.leaf);
    download(fileName(record.title, "md"), exportMarkdown(record, path), "text/markdown");
  }

  async #json(record) {
    download(fileName(record.title, "json"), await exportJson(this.chat.store, [record]), "application/json");
  }

  async remove(record) {
    const restore = await this.chat.remove(record.id);
    toast(`Deleted “${record.title}”`, "Undo", restore);
    this.list.focus();
  }
}
