// Makes elements of blocks and tokens. Text only ever becomes text nodes, and only the elements
// and attributes that are written here are made: nothing that a model writes can be markup.

import { el, icon } from "../dom.js";
import { patch } from "./patch.js";
import { CodeText } from "./code.js";
import { formula } from "./formula.js";
import { parseInline } from "./inline.js";

// Elements inside each other in one paragraph; deeper ones are left out, their text is not.
const MAX_NESTING = 16;

/** Append a paragraph's text to an element. */
export function appendInline(parent, text, open) {
  // Where no element is made, what is in it goes into the one around it.
  const stack = [{ node: parent, link: false }];
  for (const token of parseInline(text, open)) {
    const { node, link } = stack.at(-1);
    if (token.type === "text") node.append(token.text);
    else if (token.type === "code") node.append(el("code", { dir: "auto" }, token.text));
    else if (token.type === "math") node.append(formula(token.text, token.display));
    else if (token.type === "break") node.append(el("br"));
    else if (token.type === "close") stack.pop();
    else if (stack.length > MAX_NESTING || (token.tag === "a" && link)) stack.push({ node, link });
    else {
      const made = opened(token);
      node.append(made);
      stack.push({ node: made, link: link || token.tag === "a" });
    }
  }
  return parent;
}

function opened(token) {
  if (token.tag !== "a") return el(token.tag);
  const props = { href: token.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const link = el("a", token.title ? { ...props, title: token.title } : props);
  // Nothing is fetched from elsewhere: a picture is a link to it.
  if (token.image) link.classList.add("picture");
  return link;
}

/** Return the element of a block. `open`: it is still being written. */
export function renderBlock(block, open = false) {
  switch (block.type) {
    case "heading":
      // The page's title and the messages have the first two levels.
      return appendInline(el(`h${Math.min(6, block.level + 2)}`, { dir: "auto" }), block.text, open);
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", { dir: "auto" }, ...renderBlocks(block.blocks, open));
    case "code":
      return codeFigure(block.lang, block.text);
    case "math":
      return el("p", { class: "display" }, formula(block.text, true));
    case "list":
      return renderList(block, open);
    case "table":
      return renderTable(block);
    default:
      return appendInline(el("p", { dir: "auto" }), block.text, open);
  }
}

const renderBlocks = (blocks, open) => blocks.map((block, i) => renderBlock(block, open && i === blocks.length - 1));

function renderList(block, open) {
  const list = el(block.ordered ? "ol" : "ul", { dir: "auto" });
  if (block.ordered && block.number !== 1) list.start = block.number;
  block.items.forEach((item, i) => list.append(renderItem(item, block.loose, open && i === block.items.length - 1)));
  shown.set(list, block);
  return list;
}

function renderItem(item, loose, open) {
  const entry = el("li", { dir: "auto" });
  if (item.done !== null) {
    entry.classList.add("task");
    entry.append(el("input", { type: "checkbox", disabled: true, checked: item.done }), " ");
  }
  item.blocks.forEach((inner, k) => {
    const inTail = open && k === item.blocks.length - 1;
    if (inner.type === "paragraph" && !loose) appendInline(entry, inner.text, inTail);
    else entry.append(renderBlock(inner, inTail));
  });
  return entry;
}

function renderRow(cells, align, tag) {
  const row = el("tr");
  cells.forEach((cell, i) => {
    const made = el(tag, { dir: "auto" });
    if (align[i]) made.classList.add(align[i]);
    row.append(appendInline(made, cell, false));
  });
  return row;
}

function renderTable(block) {
  const table = el("table", {}, el("thead", {}, renderRow(block.head, block.align, "th")));
  if (block.rows.length) table.append(el("tbody", {}, ...block.rows.map((cells) => renderRow(cells, block.align, "td"))));
  // Wide tables scroll by themselves, also by keyboard.
  const box = el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
  shown.set(box, block);
  return box;
}

// The code, and the blocks, that elements of growing blocks show.
const views = new WeakMap();
const shown = new WeakMap();

function codeFigure(lang, text) {
  const view = new CodeText(lang);
  view.update(text);
  const copy = el("button", { type: "button", class: "quiet copy-code" }, icon("copy"), el("span", {}, "Copy"));
  const head = el("figcaption", {}, el("span", {}, view.label), copy);
  const pre = el("pre", { tabindex: "0", dir: "ltr", "aria-label": `Code, ${view.label}` }, view.element);
  const figure = el("figure", { class: "code" }, head, pre);
  views.set(figure, view);
  return figure;
}

/** Let the element of a block that is being written show what it has become; return whether that was possible. */
export function growBlock(element, block, open) {
  if (block.type === "code") return growCode(element, block);
  const before = shown.get(element);
  if (before?.type !== block.type) return false;
  if (block.type === "list") {
    if (["ordered", "number", "loose"].some((name) => before[name] !== block[name])) return false;
    const render = (i) => renderItem(block.items[i], block.loose, open && i === block.items.length - 1);
    const sources = ({ items }) => items.map(({ source }) => source);
    growChildren(element, sources(before), sources(block), render);
  } else {
    const rows = element.querySelector("tbody");
    if (!rows || String(before.head) !== String(block.head)) return false;
    const sources = (table) => table.rows.map((cells) => cells.join("|"));
    growChildren(rows, sources(before), sources(block), (i) => renderRow(block.rows[i], block.align, "td"));
  }
  shown.set(element, block);
  return true;
}

/** Make the children again whose sources are others, and the last one, which was being written. */
function growChildren(parent, before, after, render) {
  let same = 0;
  while (same < before.length - 1 && before[same] === after[same]) same++;
  for (let i = same; i < after.length; i++)
    if (i < before.length) patch(parent.children[i], render(i));
    else parent.append(render(i));
  while (parent.children.length > after.length) parent.lastElementChild.remove();
}

/** Let a code block have more text; return whether this is one of that language. */
function growCode(figure, block) {
  const view = views.get(figure);
  if (!view || view.lang !== block.lang) return false;
  view.update(block.text);
  return true;
}
