// Makes elements of blocks and tokens. Text only ever becomes text nodes, and only the elements
// and attributes that are written here are made: nothing that a model writes can be markup.

import { el, icon } from "../dom.js";
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
  block.items.forEach((item, i) => {
    const last = open && i === block.items.length - 1;
    const entry = el("li", { dir: "auto" });
    if (item.done !== null) {
      entry.classList.add("task");
      entry.append(el("input", { type: "checkbox", disabled: true, checked: item.done }), " ");
    }
    item.blocks.forEach((inner, k) => {
      const inTail = last && k === item.blocks.length - 1;
      if (inner.type === "paragraph" && !block.loose) appendInline(entry, inner.text, inTail);
      else entry.append(renderBlock(inner, inTail));
    });
    list.append(entry);
  });
  return list;
}

function renderTable(block) {
  const row = (cells, tag) =>
    el(
      "tr",
      {},
      ...cells.map((cell, i) => {
        const made = el(tag, { dir: "auto" });
        if (block.align[i]) made.classList.add(block.align[i]);
        return appendInline(made, cell, false);
      }),
    );
  const table = el("table", {}, el("thead", {}, row(block.head, "th")));
  if (block.rows.length) table.append(el("tbody", {}, ...block.rows.map((cells) => row(cells, "td"))));
  // Wide tables scroll by themselves, also by keyboard.
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

const views = new WeakMap();

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

/** Let a code block that is being written have more text; return whether this is one of that language. */
export function growCode(figure, block) {
  const view = views.get(figure);
  if (!view || view.lang !== block.lang) return false;
  view.update(block.text);
  return true;
}
