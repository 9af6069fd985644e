// An answer's text as elements, while it grows. Blocks that are complete are made once and never
// touched again; only the last one is read again, and changed where it differs.

import { isBlank } from "./lines.js";
import { parseBlocks } from "./blocks.js";
import { patch } from "./patch.js";
import { growBlock, renderBlock } from "./render.js";

/** A line that says nothing yet of what it will be: half a rule, a table's or a list's mark. */
const UNDECIDED = /^[\s>]*([-*_=+#|`~:$\\[\]()\s]{1,80}|\d{1,9}[.)]?)$/;

const GROWING = new Set(["code", "list", "table"]);

export class MarkdownView {
  #text = "";
  #open = true;
  #offset = 0;
  // The block that may still change.
  #last = null;

  constructor(element) {
    this.element = element;
  }

  /** Show a text. `open`: more will come. Cheap where it is the one before with something behind it. */
  update(text, open = false) {
    if (text === this.#text && open === this.#open) return;
    if (!text.startsWith(this.#text.slice(0, this.#offset))) this.clear();
    this.#text = text;
    this.#open = open;
    const lines = text.slice(this.#offset).split("\n");
    if (open) holdBack(lines);
    const blocks = parseBlocks(lines);
    blocks.forEach((block, i) => {
      const last = i === blocks.length - 1;
      this.#show(block, open && last);
      if (!last) this.#last = null;
    });
    if (!blocks.length) return;
    for (const line of lines.slice(0, blocks.at(-1).start)) this.#offset += line.length + 1;
  }

  /** Show nothing. */
  clear() {
    this.element.replaceChildren();
    this.#text = "";
    this.#offset = 0;
    this.#last = null;
  }

  /** Show the block that was the last one, or the next behind it. */
  #show(block, open) {
    const known = this.#last !== null;
    if (known && growBlock(this.#last, block, open)) return;
    const made = renderBlock(block, open);
    if (!known) this.element.append(made);
    // growBlock() knows by the element what it shows.
    else if (GROWING.has(block.type)) this.#last.replaceWith(made);
    this.#last = known && !GROWING.has(block.type) ? patch(this.#last, made) : made;
  }
}

/** Remove, at the end of a text that grows, what would look different a moment later. */
function holdBack(lines) {
  const last = lines.at(-1);
  if (!isBlank(last) && UNDECIDED.test(last)) lines.pop();
  else if (/^ {0,3}\|/.test(last) && (lines.length < 2 || !/^ {0,3}\|/.test(lines.at(-2)))) lines.pop();
  // A table's head alone looks like text.
  const end = lines.at(-1) === "" ? lines.length - 1 : lines.length;
  const alone = lines[end - 1] ?? "";
  if (/^ {0,3}\|.*\|\s*$/.test(alone) && !/^ {0,3}\|/.test(lines[end - 2] ?? "")) lines.length = end - 1;
}

/** Return an element with a text that is complete. */
export function renderMarkdown(element, text) {
  new MarkdownView(element).update(text);
  return element;
}
