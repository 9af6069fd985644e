// The line above the conversation: its title, the model, the state of the server.

import { byId, el, icon, iconButton } from "../dom.js";
import { openMenu } from "./menu.js";
import { count, number } from "./words.js";

const STATES = {
  connecting: "Connecting",
  ready: "Ready",
  busy: "Busy",
  loading: "Loading the model",
  draining: "Shutting down",
  gone: "Not reachable, trying again",
  key: "Wants an API key",
};
const THEMES = [
  ["system", "system", "Colours of the system"],
  ["light", "sun", "Light colours"],
  ["dark", "moon", "Dark colours"],
];

/** Let the page have the colours that are set. */
export function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export class Header {
  constructor({ chat, settings, monitor, sidebar, openSettings }) {
    Object.assign(this, { chat, settings, monitor });
    const menu = iconButton("menu", "List of conversations (Ctrl+B)", () => sidebar.toggle(), { id: "menu", "aria-controls": "sidebar" });
    this.title = el("h1", { id: "title", dir: "auto" });
    this.model = el("span", { class: "model" });
    this.state = el("span", { class: "state" });
    this.status = el("button", { type: "button", id: "status", class: "quiet", onclick: openSettings }, el("span", { class: "lamp" }), this.model, this.state);
    this.theme = iconButton("system", "", () => this.#nextTheme(), { id: "theme" });
    this.more = iconButton("more", "Actions for this conversation", () => openMenu(this.more, sidebar.actions(chat.record)), {
      "aria-haspopup": "menu",
      "aria-expanded": "false",
    });
    const fresh = iconButton("plus", "New conversation (Ctrl+Shift+O)", () => sidebar.begin(), { class: "quiet fresh" });
    byId("head").append(menu, this.title, this.status, this.theme, this.more, fresh);
    for (const type of ["open", "path", "title", "list"]) chat.addEventListener(type, () => this.show());
    monitor.addEventListener("change", () => this.#status());
    settings.addEventListener("change", () => this.show());
    this.show();
    this.#status();
  }

  show() {
    const { record } = this.chat;
    this.title.textContent = record?.title ?? "New chat";
    this.more.hidden = !record;
    document.title = record ? `${record.title} · Chat` : "Chat";
    const { theme } = this.settings.values;
    applyTheme(theme);
    const [, picture, label] = THEMES.find(([name]) => name === theme) ?? THEMES[0];
    this.theme.replaceChildren(icon(picture));
    this.theme.title = label;
    this.theme.setAttribute("aria-label", `${label}; change`);
  }

  #nextTheme() {
    const at = THEMES.findIndex(([name]) => name === this.settings.values.theme);
    this.settings.set({ theme: THEMES[(at + 1) % THEMES.length][0] });
  }

  #status() {
    const { state, model, context, running, waiting } = this.monitor;
    this.status.dataset.state = state;
    this.model.textContent = model;
    this.state.textContent = STATES[state];
    const load = state === "busy" ? `: ${count(running, "answer")} in progress, ${number(waiting)} waiting` : "";
    const room = context ? `, context of ${number(context)} tokens` : "";
    this.status.title = `${model || "The server"}: ${STATES[state]}${load}${room}`;
    this.status.setAttribute("aria-label", this.status.title);
  }
}
