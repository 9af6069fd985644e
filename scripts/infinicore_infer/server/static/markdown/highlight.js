// Highlights code line by line. What is open at the end of a line (a comment, a string of many
// lines) is the state with which the next one begins. Kinds: see css/code.css.

import { LANGUAGES, NAMES } from "./languages.js";
import { markupLine } from "./markup.js";

// Longer lines are data rather than code, and stay plain.
const LONGEST = 4000;

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const words = (text) => new Set((text ?? "").split(" ").filter(Boolean));
const NUMBER = /(?:0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*/y;
const WORD = /[\p{L}_$@][\p{L}\p{N}_$]*/uy;

/** Makes of a language's description what its lines are read with. */
function compile(spec) {
  const spans = [
    ...(spec.block ?? []).map(([from, to]) => ({ from, to, kind: "comment" })),
    ...(spec.long ?? []).map(([from, to]) => ({ from, to, kind: "string", escapes: true })),
  ];
  const fold = spec.anyCase ? (text) => text.toLowerCase() : (text) => text;
  return {
    ...spec,
    spans,
    fold,
    line: (spec.line ?? []).map((mark) => new RegExp(escaped(mark), "y")),
    quotes: (spec.quotes ?? []).map((mark) =>
      new RegExp(`${spec.prefix ?? ""}${mark}(?:[^\\\\${mark}]|\\\\.)*(?:${mark}|\\\\?$)`, "y"),
    ),
    starts: spans.map(({ from }) => new RegExp(`${spec.prefix ?? ""}${escaped(from)}`, "y")),
    patterns: Object.entries(spec.patterns ?? {}).map(([kind, source]) => [kind, new RegExp(source, "yu")]),
    keywords: words(spec.keywords),
    types: words(spec.types),
    literals: words(spec.literals),
  };
}

const compiled = new Map();

/** Return {label, highlight} of a language, by the name in the fence. */
export function highlighter(name) {
  const known = NAMES[name.toLowerCase()];
  const label = known ? LANGUAGES[known].label : name || "text";
  if (!known) return { label, highlight: (line) => ({ pieces: line ? [["", line]] : [], state: null }) };
  if (!compiled.has(known)) compiled.set(known, compile(LANGUAGES[known]));
  const lang = compiled.get(known);
  const read = lang.markup ? markupLine : codeLine;
  return {
    label,
    highlight: (line, state) =>
      line.length > LONGEST ? { pieces: [["", line]], state } : read(line, state, lang),
  };
}

const matchAt = (pattern, line, at) => {
  pattern.lastIndex = at;
  return pattern.exec(line)?.[0] ?? "";
};

/** Return where a span that is open ends in a line, behind its mark, or -1. */
function spanEnd(line, from, { to, escapes }) {
  for (let at = from; at < line.length; at++) {
    if (escapes && line[at] === "\\" && to !== "\\") at++;
    else if (line.startsWith(to, at)) return at + to.length;
  }
  return -1;
}

function codeLine(line, state, lang) {
  const pieces = [];
  const put = (kind, text) => {
    const last = pieces.at(-1);
    if (last && last[0] === kind) last[1] += text;
    else if (text) pieces.push([kind, text]);
  };
  let at = 0;
  let open = state;
  /** Take the rest of the open span; return whether it ends in this line. */
  const finish = (from) => {
    const end = spanEnd(line, from, open);
    put(open.kind, line.slice(at, end < 0 ? line.length : end));
    at = end < 0 ? line.length : end;
    if (end >= 0) open = null;
  };
  if (open) finish(0);
  if (at === 0 && lang.whole) {
    const kind = lang.whole(line);
    if (kind) return { pieces: [[kind, line]], state: null };
  }
  while (at < line.length) {
    const span = lang.starts.findIndex((pattern) => matchAt(pattern, line, at));
    if (span >= 0) {
      open = lang.spans[span];
      finish(at + matchAt(lang.starts[span], line, at).length);
      continue;
    }
    const [kind, text] = piece(line, at, lang);
    put(kind, text);
    at += text.length;
  }
  return { pieces, state: open };
}

/** Return the kind and the text of what is next in a line. */
function piece(line, at, lang) {
  const before = line[at - 1] ?? " ";
  // In a shell, a # within a word begins no comment.
  if (!lang.spaced || /\s/.test(before))
    for (const mark of lang.line) if (matchAt(mark, line, at)) return ["comment", line.slice(at)];
  for (const [kind, pattern] of lang.patterns) {
    const text = matchAt(pattern, line, at);
    if (text) return [kind, text];
  }
  for (const quote of lang.quotes) {
    const text = matchAt(quote, line, at);
    if (text) return ["string", text];
  }
  const number = matchAt(NUMBER, line, at);
  if (number) return ["number", number];
  const word = matchAt(WORD, line, at);
  if (!word) return ["", String.fromCodePoint(line.codePointAt(at))];
  const folded = lang.fold(word);
  if (lang.keywords.has(folded)) return ["keyword", word];
  if (lang.types.has(folded)) return ["type", word];
  if (lang.literals.has(folded)) return ["number", word];
  if (word[0] === "@" && lang.decorators) return ["meta", word];
  return [line[at + word.length] === "(" ? "function" : "", word];
}
