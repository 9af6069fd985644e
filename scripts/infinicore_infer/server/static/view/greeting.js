import { el } from "../dom.js";

const EXAMPLES = [
  ["Explain", "how a hash table works, with a picture in text"],
  ["Write", "a Python function that reads a CSV file and sums a column"],
  ["Compare", "three ways to sort a list, in a table"],
];

/** Return what is shown where no conversation has begun. `use` is called with an example. */
export function makeGreeting(monitor, use) {
  const name = el("p", { class: "note" });
  const examples = EXAMPLES.map(([verb, rest]) =>
    el("button", { type: "button", onclick: () => use(`${verb} ${rest}`) }, el("strong", {}, verb), ` ${rest}`),
  );
  monitor.addEventListener("change", () => {
    name.textContent = monitor.model ? `${monitor.model} runs on this server. What you write goes nowhere else.` : "";
  });
  return el("section", { class: "greeting" }, el("h2", {}, "What would you like to know?"), name, el("div", { class: "examples" }, ...examples));
}
