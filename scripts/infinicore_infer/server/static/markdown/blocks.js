// Markdown's blocks: text becomes headings, paragraphs, lists, quotes, tables, code and formulas.
// The result is plain data; inline.js reads the text inside, render.js makes elements of it.

import {
  MAX_DEPTH,
  cellsOf,
  closesFence,
  fenceOf,
  headingOf,
  indentOf,
  interrupts,
  isBlank,
  isQuote,
  isRule,
  itemOf,
  mathOf,
  tableOf,
  underlineOf,
  untab,
} from "./lines.js";

/**
 * Return the blocks of a text.
 *
 * Each has `type`, `start` (its first line's number) and `gap` (whether a blank line is before it).
 * A block's meaning depends on no earlier block, so a text that grows needs to be parsed again only
 * from the start of its last block on.
 */
export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  let gap = false;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      gap = true;
      at++;
      continue;
    }
    const [block, next] = takeBlock(lines, at, depth);
    blocks.push({ ...block, start: at, gap });
    // A list takes the blank lines behind it, since it may go on there.
    gap = next > at && isBlank(lines[next - 1]);
    at = next;
  }
  return blocks;
}

/** Return the block that begins at a line, and the number of the line behind it. */
function takeBlock(lines, at, depth) {
  const line = untab(lines[at]);
  if (depth > MAX_DEPTH) return [{ type: "paragraph", text: lines.slice(at).join("\n") }, lines.length];
  if (indentOf(line) >= 4) return takeIndented(lines, at);
  const fence = fenceOf(line);
  if (fence) return takeFence(lines, at, fence);
  const heading = headingOf(line);
  if (heading) return [{ type: "heading", ...heading }, at + 1];
  if (isRule(line)) return [{ type: "rule" }, at + 1];
  if (isQuote(line)) return takeQuote(lines, at, depth);
  if (itemOf(line)) return takeList(lines, at, depth);
  const closer = mathOf(line);
  if (closer) return takeMath(lines, at, closer);
  const align = tableOf(line, lines[at + 1]);
  if (align) return takeTable(lines, at, align);
  return takeParagraph(lines, at);
}

function takeIndented(lines, at) {
  const taken = [];
  let end = at;
  for (let i = at; i < lines.length; i++) {
    const line = untab(lines[i]);
    if (!isBlank(line) && indentOf(line) < 4) break;
    taken.push(line.slice(4));
    if (!isBlank(line)) end = i + 1;
  }
  const text = taken.slice(0, end - at).join("\n");
  return [{ type: "code", lang: "", text, closed: true }, end];
}

function takeFence(lines, at, fence) {
  const taken = [];
  let i = at + 1;
  for (; i < lines.length; i++) {
    if (closesFence(untab(lines[i]), fence)) break;
    const line = lines[i];
    taken.push(line.slice(Math.min(fence.indent, indentOf(line))));
  }
  const lang = fence.info.split(/[\s{,]/)[0];
  return [{ type: "code", lang, text: taken.join("\n"), closed: i < lines.length }, Math.min(i + 1, lines.length)];
}

function takeMath(lines, at, closer) {
  const first = lines[at].trim().slice(2);
  if (first.endsWith(closer) && first.length > 1)
    return [{ type: "math", text: first.slice(0, -2).trim() }, at + 1];
  const taken = [first];
  let i = at + 1;
  for (; i < lines.length && !isBlank(lines[i]); i++) {
    const line = lines[i].trimEnd();
    if (line.endsWith(closer)) {
      taken.push(line.slice(0, -2));
      i++;
      break;
    }
    taken.push(line);
  }
  return [{ type: "math", text: taken.join("\n").trim() }, i];
}

function takeTable(lines, at, align) {
  const head = cellsOf(lines[at]);
  const rows = [];
  let i = at + 2;
  for (; i < lines.length; i++) {
    const line = untab(lines[i]);
    if (indentOf(line) > 3 || interrupts(line) || itemOf(line)) break;
    const cells = cellsOf(line).slice(0, head.length);
    rows.push([...cells, ...Array(head.length - cells.length).fill("")]);
  }
  return [{ type: "table", align, head, rows }, i];
}

function takeParagraph(lines, at) {
  const taken = [lines[at].trimStart()];
  let i = at + 1;
  for (; i < lines.length; i++) {
    const line = untab(lines[i]);
    const level = underlineOf(line);
    if (level) return [{ type: "heading", level, text: taken.join("\n").trimEnd() }, i + 1];
    if (isBlank(line) || (indentOf(line) < 4 && interrupts(line, lines[i + 1]))) break;
    taken.push(lines[i].trimStart());
  }
  return [{ type: "paragraph", text: taken.join("\n").trimEnd() }, i];
}

// Before a line that is in a container without its mark: so far to the right, it only goes on with a
// paragraph, whatever it looks like, at every depth.
const LAZY = " ".repeat(16 * MAX_DEPTH);

/** Follows the lines of a container, to tell whether a line without its mark still belongs to it. */
class Laziness {
  #fence = null;
  #paragraph = false;

  /** Take a line of the container, its mark removed. */
  see(line) {
    if (this.#fence) {
      if (closesFence(line, this.#fence)) this.#fence = null;
      this.#paragraph = false;
      return;
    }
    let text = untab(line);
    // The innermost container decides.
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      const item = itemOf(text);
      if (isQuote(text)) text = text.replace(/^ {0,3}> ?/, "");
      else if (item) text = item.text;
      else break;
    }
    this.#fence = fenceOf(text);
    const paragraph = !isBlank(text) && !this.#fence && !headingOf(text) && !isRule(text);
    this.#paragraph = paragraph && (this.#paragraph || indentOf(text) < 4);
  }

  /** Return whether a line goes on with the container's last paragraph. */
  takes(line) {
    return this.#paragraph && !interrupts(untab(line)) && !itemOf(untab(line));
  }
}

function takeQuote(lines, at, depth) {
  const taken = [];
  const lazy = new Laziness();
  let i = at;
  for (; i < lines.length; i++) {
    const line = untab(lines[i]);
    if (isQuote(line)) {
      taken.push(line.replace(/^ {0,3}> ?/, ""));
      lazy.see(taken.at(-1));
    } else if (lazy.takes(line)) {
      taken.push(LAZY + line.trimStart());
    } else break;
  }
  return [{ type: "quote", blocks: parseBlocks(taken, depth + 1) }, i];
}

/** Return the lines of an item, without their indent, and the number of the line behind it. */
function takeItem(lines, at, item) {
  const taken = [item.text];
  const lazy = new Laziness();
  lazy.see(taken[0]);
  let i = at + 1;
  for (; i < lines.length; i++) {
    const line = untab(lines[i]);
    if (isBlank(line)) {
      // An item that begins with a blank line holds nothing but this.
      if (item.empty && i === at + 1) break;
      taken.push("");
    } else if (indentOf(line) >= item.width) taken.push(line.slice(item.width));
    else if (taken.at(-1) !== "" && lazy.takes(line)) taken.push(LAZY + line.trimStart());
    else break;
    lazy.see(taken.at(-1));
  }
  return [taken, i];
}

function takeList(lines, at, depth) {
  const first = itemOf(untab(lines[at]));
  const items = [];
  let loose = false;
  let i = at;
  while (i < lines.length) {
    const line = untab(lines[i]);
    const item = itemOf(line);
    if (!item || item.kind !== first.kind) break;
    const [taken, next] = takeItem(lines, i, item);
    let end = next;
    while (end > i + 1 && isBlank(lines[end - 1])) end--;
    let behind = next;
    while (behind < lines.length && isBlank(lines[behind])) behind++;
    const follows = behind < lines.length && itemOf(untab(lines[behind]))?.kind === first.kind;
    const task = /^\[([ xX])\](?=[ \t])/.exec(taken[0]);
    if (task) taken[0] = taken[0].slice(3).trimStart();
    const blocks = parseBlocks(taken, depth + 1);
    loose ||= blocks.some((block, k) => k > 0 && block.gap);
    loose ||= follows && behind > end;
    items.push({ blocks, done: task ? task[1] !== " " : null, source: taken.join("\n") });
    i = follows ? behind : next;
    if (!follows) break;
  }
  return [{ type: "list", ordered: first.start !== null, number: first.start ?? 1, loose, items }, i];
}
