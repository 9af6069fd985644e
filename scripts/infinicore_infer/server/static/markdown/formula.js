import { el } from "../dom.js";

/** Return the element of a formula: its source, as it was written. */
export function formula(source, display) {
  return el(display ? "div" : "span", { class: "math", dir: "ltr" }, source);
}
