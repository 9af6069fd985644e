// Parts of dialogs.

import { el, iconButton } from "../dom.js";

/** Return a dialog with a title, which closes by Escape, its button, or a click beside it. */
export function makeDialog(id, title, ...parts) {
  const dialog = el("dialog", { id, "aria-labelledby": `${id}-title` });
  const close = iconButton("close", "Close", () => dialog.close());
  const head = el("header", {}, el("h2", { id: `${id}-title` }, title), close);
  dialog.append(head, el("div", { class: "inside" }, ...parts));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  return dialog;
}

export const section = (title, ...parts) => el("section", {}, el("h3", {}, title), ...parts);

/** Return a control with its name above and a note below. */
export function labelled(control, label, note) {
  const text = el("span", { class: "label" }, label);
  if (!note) return el("label", { class: "field" }, text, control);
  const id = `${control.id}-note`;
  control.setAttribute("aria-describedby", id);
  return el("label", { class: "field" }, text, control, el("span", { class: "note", id }, note));
}

/**
 * Return a field for a number, or for none.
 *
 * @param {function} changed called with the number, or null where the field is empty; not called
 *     with what the field does not take, of which it says what it would
 */
export function numberField(id, { least, most, step, placeholder }, changed) {
  const field = el("input", { type: "number", id, min: least, max: most, step: step === 1 ? 1 : "any", placeholder, inputmode: "decimal" });
  field.addEventListener("input", () => {
    const { validity } = field;
    const wrong = validity.badInput || validity.rangeUnderflow || validity.rangeOverflow || validity.stepMismatch;
    const limit = most === undefined ? `at least ${least}` : `from ${least} to ${most}`;
    field.setCustomValidity("");
    field.setAttribute("aria-invalid", String(wrong));
    field.title = wrong ? `${step === 1 ? "A whole number" : "A number"} ${limit}` : "";
    if (!wrong) changed(field.value === "" ? null : Number(field.value));
  });
  // What is wrong when the field is left was not taken, and does not stay.
  field.addEventListener("blur", () => field.dispatchEvent(new CustomEvent("left")));
  return field;
}

export function checkbox(id, label, changed) {
  const box = el("input", { type: "checkbox", id, onchange: () => changed(box.checked) });
  return { box, line: el("label", { class: "check" }, box, label) };
}
