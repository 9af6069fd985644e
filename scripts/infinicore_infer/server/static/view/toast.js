import { byId, el } from "../dom.js";

const SHOWN_MS = 8000;

/** Show a line for a while, with a button if there is something to do about it. */
export function toast(text, label, action) {
  const box = el("div", { class: "toast" }, el("span", { dir: "auto" }, text));
  let timer = 0;
  const hide = () => {
    clearTimeout(timer);
    box.remove();
  };
  const wait = () => (timer = setTimeout(hide, SHOWN_MS));
  if (label)
    box.append(
      el("button", { type: "button", onclick: () => (hide(), action()) }, label),
    );
  // It stays as long as somebody is about to use it.
  for (const event of ["pointerenter", "focusin"]) box.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) box.addEventListener(event, wait);
  byId("toasts").append(box);
  wait();
}
