// The keyboard.

import { byId, el } from "../dom.js";
import { makeDialog } from "./form.js";

const mac = /Mac|iPhone|iPad/.test(navigator.platform);
const MOD = mac ? "⌘" : "Ctrl";

const LIST = [
  ["Enter", "Send"],
  ["Shift+Enter", "New line"],
  ["↑", "Edit the last question, where the field is empty"],
  ["Escape", "Stop the answer; close what is open"],
  [`${MOD}+Shift+O`, "New conversation"],
  [`${MOD}+K`, "Search conversations"],
  [`${MOD}+B`, "Show or hide the list"],
  [`${MOD}+Shift+Y`, "Copy the last answer"],
  [`${MOD}+,`, "Settings"],
  ["/", "To the message field"],
  ["F2, Delete", "Rename, delete a conversation in the list"],
  ["?", "These shortcuts"],
];

/** Return what shows the list of shortcuts, and listen to them. */
export function makeShortcuts({ chat, sidebar, thread, settings }) {
  const keys = (text) => text.split(/(, |\+)/).map((part) => (/^(, |\+)$/.test(part) ? part.trim() || part : el("kbd", {}, part)));
  const rows = LIST.map(([combination, meaning]) => el("div", {}, el("dt", {}, ...keys(combination)), el("dd", {}, meaning)));
  const dialog = makeDialog("shortcuts", "Keyboard shortcuts", el("dl", { class: "shortcuts" }, ...rows));
  const open = () => dialog.open || dialog.showModal();
  const withMod = {
    k: () => sidebar().find(),
    b: () => sidebar().toggle(),
    ",": () => settings().open(),
  };
  const withShift = { o: () => sidebar().begin(), y: () => thread.copyLast() };
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const busy = document.querySelector("dialog[open]");
    if (event.isComposing || busy) return;
    if ((mac ? event.metaKey : event.ctrlKey) && !event.altKey) {
      const action = (event.shiftKey ? withShift : withMod)[key];
      if (!action) return;
      event.preventDefault();
      action();
      return;
    }
    if (event.key === "Escape") {
      if (chat.answer) chat.stop();
      else if (byId("stage").inert) sidebar().toggle(false);
      return;
    }
    const typing = event.target.closest?.("input, textarea, select, [role=menu]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("text").focus();
    } else if (event.key === "?") open();
  });
  return open;
}
