// A menu below a button: arrow keys move, Escape and clicks elsewhere close it.

import { el, icon } from "../dom.js";

let close = null;

/**
 * Open a menu, or close it where it is open.
 *
 * @param {Element} button what it belongs to
 * @param {Array<[string, string, function]>} entries picture, name and action
 */
export function openMenu(button, entries) {
  const own = button.getAttribute("aria-expanded") === "true";
  close?.();
  if (own) return;
  const items = entries.map(([picture, label, action]) => {
    const chosen = () => {
      close?.();
      action();
    };
    return el("button", { type: "button", role: "menuitem", tabindex: "-1", onclick: chosen }, icon(picture), label);
  });
  const menu = el("div", { class: "menu", role: "menu", "aria-label": button.getAttribute("aria-label") }, ...items);
  const outside = (event) => {
    if (!menu.contains(event.target) && !button.contains(event.target)) close?.();
  };
  close = () => {
    const focused = menu.contains(document.activeElement);
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside);
    removeEventListener("resize", close);
    if (focused) button.focus();
    close = null;
  };
  menu.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const move = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (move !== undefined) items[move % items.length].focus();
    else return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  });
  button.setAttribute("aria-expanded", "true");
  document.body.append(menu);
  place(menu, button);
  document.addEventListener("pointerdown", outside);
  addEventListener("resize", close);
  items[0].focus();
}

function place(menu, button) {
  const at = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const below = at.bottom + height + 8 < innerHeight;
  menu.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - height - 4)}px`;
  menu.style.left = `${Math.min(Math.max(4, at.right - width), innerWidth - width - 4)}px`;
}
