// Elements, made one by one: the page has no markup in strings anywhere.

import { ICONS } from "./icons.js";

/**
 * Return a new element.
 *
 * @param {string} tag its name
 * @param {object} props attributes; those that are true or false are properties, and functions
 *     listen to events (`onclick`)
 * @param {...(Node|string)} children what it holds
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made[name] = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  if (children.length) made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return a picture that says nothing to screen readers. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", "0 0 20 20");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  for (const d of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    made.append(path);
  }
  return made;
}

/** Return a button with a picture and a name, which is its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "quiet", title: label, "aria-label": label, onclick, ...props }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Have screen readers say something. */
export function announce(text) {
  const line = byId("announcer");
  // The same words twice are said twice.
  line.textContent = line.textContent === text ? `${text}\u00a0` : text;
}

/** Put a text on the clipboard; return whether that was allowed. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain http on another machine has no clipboard of its own; a selection can still be copied.
    const field = el("textarea", { class: "unseen", "aria-hidden": "true" });
    field.value = text;
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focused?.focus?.();
    return done;
  }
}

/** Return a text without halves of surrogate pairs, which no encoding can carry. */
export const wellFormed = (text) =>
  text.toWellFormed
    ? text.toWellFormed()
    : text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");

/** Return a text of at most so many characters, in whole ones. */
export function shortened(text, most) {
  const chars = Array.from(text.slice(0, 2 * most + 2));
  return chars.length > most ? `${chars.slice(0, most).join("")}…` : chars.join("");
}

/** Save a text as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
