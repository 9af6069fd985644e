// The settings.

import { byId, download, el, icon } from "../dom.js";
import { FIELDS, PRESETS } from "../chat/settings.js";
import { storageUse } from "../chat/store.js";
import { exportJson, importFile } from "../chat/transfer.js";
import { checkbox, labelled, makeDialog, numberField, section } from "./form.js";
import { toast } from "./toast.js";
import { bytes, count } from "./words.js";

export class SettingsDialog {
  #numbers = {};

  constructor({ chat, settings, monitor }) {
    Object.assign(this, { chat, settings, monitor });
    this.dialog = makeDialog(
      "settings",
      "Settings",
      section("This conversation", this.#system("system", "Instructions", "The system prompt: how the model should answer here")),
      section("Sampling", ...this.#sampling()),
      section("Length and thinking", ...this.#limits()),
      section("New conversations", this.#system("default-system", "Instructions to begin with", "")),
      section("Server", ...this.#server()),
      section("Appearance", this.#themes()),
      section("Your conversations", ...this.#storage()),
    );
    settings.addEventListener("change", () => this.#fill());
    monitor.addEventListener("change", () => this.#fillServer());
  }

  open() {
    if (this.dialog.open) return;
    this.#fill();
    this.#fillServer();
    this.#fillStorage();
    byId("system").value = this.chat.system;
    byId("default-system").value = this.settings.values.system;
    byId("key").value = this.settings.key;
    this.dialog.showModal();
    if (this.monitor.state === "key") byId("key").focus();
  }

  #system(id, label, note) {
    const field = el("textarea", { id, rows: "3", dir: "auto" });
    field.addEventListener("input", () => {
      if (id === "system") this.chat.setSystem(field.value);
      else this.settings.set({ system: field.value });
    });
    return labelled(field, label, note);
  }

  #sampling() {
    const choice = el("select", { id: "preset" }, ...Object.entries(PRESETS).map(([value, { label }]) => el("option", { value }, label)));
    choice.addEventListener("change", () => {
      // One's own begin as those that were in force.
      const custom = choice.value === "custom" ? { custom: this.settings.sampling() } : {};
      this.settings.set({ preset: choice.value, ...custom });
    });
    const grid = el("div", { class: "grid" });
    for (const [name, label, least, most, step, note] of FIELDS) {
      const field = numberField(name, { least, most, step, placeholder: "the model’s" }, (value) => this.#number(name, value));
      field.addEventListener("left", () => this.#fill());
      this.#numbers[name] = field;
      grid.append(labelled(field, label, note));
    }
    return [labelled(choice, "Preset", "Changing a value below makes it your own. Qwen advises against temperature 0 where it thinks."), grid];
  }

  #number(name, value) {
    const custom = this.settings.sampling();
    if (value === null) delete custom[name];
    else custom[name] = value;
    this.settings.set({ preset: "custom", custom });
  }

  #limits() {
    const { box, line } = checkbox("think-box", "Think before answering", (think) => this.settings.set({ think }));
    this.think = box;
    const most = numberField("max_tokens", { least: 1, step: 1, placeholder: "as many as fit" }, (value) => this.settings.set({ max_tokens: value }));
    const budget = numberField("thinking_budget", { least: 0, step: 1, placeholder: "no limit" }, (value) => this.settings.set({ thinking_budget: value }));
    Object.assign(this.#numbers, { max_tokens: most, thinking_budget: budget });
    for (const field of [most, budget]) field.addEventListener("left", () => this.#fill());
    const fields = [labelled(most, "Most tokens", "Of an answer, its thinking included"), labelled(budget, "Most tokens of thinking", "Then it has to answer")];
    return [line, el("div", { class: "grid" }, ...fields)];
  }

  #server() {
    this.state = el("p", { class: "note" });
    const key = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false" });
    const { box, line } = checkbox("remember-key", "Remember the key in this browser", () => save());
    this.remember = box;
    const save = () => {
      this.settings.setKey(key.value.trim(), box.checked);
      this.monitor.check();
    };
    key.addEventListener("change", save);
    return [this.state, labelled(key, "API key", "Sent to this server only. Without the tick it is forgotten with this tab."), line];
  }

  #themes() {
    const line = el("div", { class: "choices", role: "radiogroup", "aria-label": "Colours" });
    for (const [value, label] of [["system", "As the system"], ["light", "Light"], ["dark", "Dark"]]) {
      const radio = el("input", { type: "radio", name: "theme", value, onchange: () => this.settings.set({ theme: value }) });
      line.append(el("label", { class: "check" }, radio, label));
    }
    return line;
  }

  #storage() {
    this.use = el("p", { class: "note" });
    const file = el("input", { type: "file", id: "import", accept: ".json,application/json", class: "unseen", tabindex: "-1", "aria-label": "File of conversations" });
    file.addEventListener("change", () => this.#import(file));
    const button = (picture, label, action, props = {}) => el("button", { type: "button", onclick: action, ...props }, icon(picture), label);
    const line = el(
      "div",
      { class: "row" },
      button("download", "Export all", () => this.#export(), { id: "export-all" }),
      button("upload", "Import", () => file.click(), { id: "import-button" }),
      button("trash", "Delete all", () => this.#deleteAll(), { id: "delete-all" }),
    );
    return [this.use, line, file];
  }

  async #export() {
    const day = new Date().toISOString().slice(0, 10);
    download(`chats-${day}.json`, await exportJson(this.chat.store, this.chat.list), "application/json");
  }

  async #import(field) {
    const [file] = field.files;
    field.value = "";
    if (!file) return;
    try {
      const records = await importFile(this.chat.store, file);
      toast(`${count(records.length, "conversation")} imported from ${file.name}`);
      this.dialog.close();
      await this.chat.refresh();
      if (records.length) await this.chat.open(records[0].id);
    } catch (error) {
      this.dialog.close();
      toast(`${file.name} was not imported: ${error.message}`);
    }
  }

  async #deleteAll() {
    const restores = [];
    for (const record of [...this.chat.list]) restores.push(await this.chat.remove(record.id));
    this.dialog.close();
    toast(`Deleted ${count(restores.length, "conversation")}`, "Undo", async () => {
      for (const restore of restores) await restore();
    });
  }

  #fill() {
    const { values } = this.settings;
    byId("preset").value = values.preset;
    const shown = { ...this.settings.sampling(), max_tokens: values.max_tokens, thinking_budget: values.thinking_budget };
    for (const [name, field] of Object.entries(this.#numbers)) {
      if (field === document.activeElement) continue;
      field.value = shown[name] ?? "";
      field.setAttribute("aria-invalid", "false");
    }
    this.think.checked = values.think;
    this.remember.checked = values.rememberKey;
    for (const radio of this.dialog.querySelectorAll("[name=theme]")) radio.checked = radio.value === values.theme;
  }

  #fillServer() {
    this.state.textContent = byId("status").title;
  }

  async #fillStorage() {
    const { list, store } = this.chat;
    const kept = store.problem ? `Not all are kept: ${store.problem}.` : "They are kept in this browser only.";
    this.use.textContent = `${count(list.length, "conversation")}. ${kept}`;
    const use = await storageUse();
    if (use?.quota) this.use.textContent += ` ${bytes(use.usage)} of ${bytes(use.quota)} that the browser allows are used.`;
  }
}
