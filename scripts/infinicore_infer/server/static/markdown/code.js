// The text of a code block, highlighted line by line, so that a growing one only costs its new lines.

import { el } from "../dom.js";
import { highlighter } from "./highlight.js";

export class CodeText {
  #text = "";
  #done = 0;
  #state = null;
  #tail = el("span");
  #highlight;

  constructor(lang) {
    this.lang = lang;
    const { label, highlight } = highlighter(lang);
    this.label = label;
    this.#highlight = highlight;
    this.element = el("code", {}, this.#tail);
  }

  /** Show a text; cheap where it is the one before with something behind it. */
  update(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text.slice(0, this.#done))) {
      this.element.replaceChildren(this.#tail);
      this.#done = 0;
      this.#state = null;
    }
    this.#text = text;
    const fresh = document.createDocumentFragment();
    let end = text.indexOf("\n", this.#done);
    for (; end >= 0; end = text.indexOf("\n", this.#done)) {
      this.#state = this.#append(fresh, text.slice(this.#done, end));
      fresh.append("\n");
      this.#done = end + 1;
    }
    this.#tail.before(fresh);
    this.#tail.replaceChildren();
    this.#append(this.#tail, text.slice(this.#done));
  }

  /** Append a line; return the state behind it. */
  #append(parent, line) {
    const { pieces, state } = this.#highlight(line, this.#state);
    for (const [kind, text] of pieces) parent.append(kind ? el("span", { class: `t-${kind}` }, text) : text);
    return state;
  }
}
