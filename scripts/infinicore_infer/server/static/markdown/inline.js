// What is inside a paragraph: emphasis, code, links, formulas. The result is a flat list of tokens,
// {type, ...}: text (text), code (text), math (text, display), break, open (tag, href) and close.
// The time is linear in the length, whatever the text: delimiters as in CommonMark's appendix.

import { ENTITIES } from "./entities.js";
import { matchEmphasis } from "./emphasis.js";
import { safeUrl, takeTarget } from "./links.js";

const SPECIAL = /https?:\/\/|[\\`*_~[\]!<&$\n]/g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITY = /&(?:#[xX]([0-9a-fA-F]{1,6})|#(\d{1,7})|([a-zA-Z][a-zA-Z0-9]{1,31}));/y;
const BREAK = /<br[ \t]{0,9}\/?>/iy;
const BRACKETED = /<([a-zA-Z][a-zA-Z0-9+.-]{1,31}:[^\s<>]{0,2000}|[\w.+-]{1,64}@[\w.-]{1,200})>/y;
const BARE = /https?:\/\/[^\s<>"`|\\^{}\u0000-\u001f]{1,2000}/y;

class Reader {
  tokens = [];
  #brackets = [];
  #inactive = 0;
  #ticks = null;
  #missing = new Set();

  constructor(text, open) {
    this.text = text;
    this.open = open;
    this.at = 0;
  }

  read() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const match = SPECIAL.exec(text);
      this.#put(text.slice(this.at, match ? match.index : text.length));
      if (!match) break;
      this.at = match.index;
      this.#special(match[0]);
    }
    matchEmphasis(this.tokens, 0, this.open);
    return this.tokens;
  }

  #put(text) {
    const last = this.tokens.at(-1);
    if (!text) return;
    if (last?.type === "text") last.text += text;
    else this.tokens.push({ type: "text", text });
  }

  /** Put a character as it is. */
  #plain(text) {
    this.#put(text);
    this.at += text.length;
  }

  #special(mark) {
    if (mark === "\\") return this.#backslash();
    if (mark === "`") return this.#code();
    if (mark === "\n") return this.#newline();
    if (mark === "$") return this.#dollar();
    if (mark === "[") return this.#bracket("[");
    if (mark === "!") return this.text[this.at + 1] === "[" ? this.#bracket("![") : this.#plain("!");
    if (mark === "]") return this.#link();
    if (mark === "<") return this.#angle();
    if (mark === "&") return this.#entity();
    if (mark.length > 1) return this.#bare();
    return this.#delimiter(mark);
  }

  #newline() {
    const last = this.tokens.at(-1);
    const text = last?.type === "text" ? last.text : "";
    const bare = text.replace(/(?<! ) +$/, "");
    if (last?.type === "text") last.text = bare;
    this.tokens.push(text.length - bare.length >= 2 ? { type: "break" } : { type: "text", text: "\n" });
    this.at++;
    while (this.text[this.at] === " ") this.at++;
  }

  #backslash() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "(") return this.#formula("\\(", "\\)", false);
    if (next === "[") return this.#formula("\\[", "\\]", true);
    if (next === "\n") {
      this.tokens.push({ type: "break" });
      this.at += 2;
      while (this.text[this.at] === " ") this.at++;
      return;
    }
    if (!ESCAPABLE.test(next)) return this.#plain("\\");
    this.#put(next);
    this.at += 2;
  }

  /** Return where a text comes next; what was not found once is not looked for again. */
  #find(what, from) {
    if (this.#missing.has(what)) return -1;
    const found = this.text.indexOf(what, from);
    if (found < 0) this.#missing.add(what);
    return found;
  }

  #formula(opener, closer, display) {
    const end = this.#find(closer, this.at + 2);
    if (end < 0) {
      this.#put(opener[1]);
      this.at += 2;
      return;
    }
    this.tokens.push({ type: "math", text: this.text.slice(this.at + 2, end).trim(), display });
    this.at = end + 2;
  }

  /** Dollars enclose a formula as in pandoc, so that prices stay prices. */
  #dollar() {
    const mark = this.text.startsWith("$$", this.at) ? "$$" : "$";
    const begin = this.at + mark.length;
    const end = this.#find(mark, begin);
    const inside = end < 0 ? "" : this.text.slice(begin, end);
    const tight = /^\S/.test(inside) && /\S$/.test(inside) && !inside.includes("\n\n");
    if (!inside || (mark === "$" && (!tight || /\d/.test(this.text[end + 1] ?? "")))) return this.#plain(mark);
    this.tokens.push({ type: "math", text: inside.trim(), display: mark === "$$" });
    this.at = end + mark.length;
  }

  #code() {
    const run = /`+/y;
    run.lastIndex = this.at;
    const mark = run.exec(this.text)[0];
    this.#ticks ??= ticksOf(this.text);
    // A backslash may have taken the first of a run, whose rest is in no list then.
    const ends = this.#ticks.get(mark.length) ?? { places: [], next: 0 };
    while (ends.next < ends.places.length && ends.places[ends.next] <= this.at) ends.next++;
    const begin = this.at + mark.length;
    let end = ends.places[ends.next];
    if (end === undefined) {
      if (!this.open || mark.length > 2) return this.#plain(mark);
      // It is still being written.
      end = this.text.length;
    }
    let text = this.text.slice(begin, end).replace(/\n/g, " ");
    if (/^ .*\S.* $/.test(text)) text = text.slice(1, -1);
    if (text) this.tokens.push({ type: "code", text });
    this.at = end + mark.length;
  }

  #angle() {
    BREAK.lastIndex = BRACKETED.lastIndex = this.at;
    const line = BREAK.exec(this.text);
    if (line) {
      this.tokens.push({ type: "break" });
      this.at += line[0].length;
      return;
    }
    const match = BRACKETED.exec(this.text);
    const written = match?.[1] ?? "";
    const href = match && safeUrl(written.includes(":") ? written : `mailto:${written}`);
    if (!href) return this.#plain("<");
    this.#whole(href, written);
    this.at += match[0].length;
  }

  #bare() {
    BARE.lastIndex = this.at;
    let address = BARE.exec(this.text)?.[0] ?? "";
    if (/\w/.test(this.text[this.at - 1] ?? "")) address = "";
    address = address.slice(0, addressEnd(address));
    const href = safeUrl(address);
    if (!href) return this.#plain("http");
    this.#whole(href, address);
    this.at += address.length;
  }

  #whole(href, text) {
    this.tokens.push({ type: "open", tag: "a", href }, { type: "text", text }, { type: "close" });
  }

  #entity() {
    ENTITY.lastIndex = this.at;
    const match = ENTITY.exec(this.text);
    if (!match) return this.#plain("&");
    const code = match[1] ? parseInt(match[1], 16) : Number(match[2]);
    let text = ENTITIES[match[3]];
    if (!match[3]) text = code > 0 && code < 0x110000 ? String.fromCodePoint(code) : "\ufffd";
    if (text === undefined) return this.#plain("&");
    this.#put(text);
    this.at += match[0].length;
  }

  #bracket(mark) {
    this.#brackets.push({ token: this.tokens.length, image: mark === "![" });
    this.tokens.push({ type: "text", text: mark });
    // The next text must not be joined to it.
    this.tokens.push({ type: "text", text: "" });
    this.at += mark.length;
  }

  #link() {
    const opener = this.#brackets.pop();
    const active = opener && (opener.image || this.#brackets.length >= this.#inactive);
    if (opener && this.#brackets.length < this.#inactive) this.#inactive = this.#brackets.length;
    const target = active && this.text[this.at + 1] === "(" ? takeTarget(this.text, this.at + 2) : null;
    const href = target && safeUrl(target.url);
    // A link that goes nowhere safe stays as it was written.
    if (!href) return this.#plain("]");
    const { tokens } = this;
    matchEmphasis(tokens, opener.token + 1, false);
    tokens[opener.token] = { type: "open", tag: "a", href, title: target.title, image: opener.image };
    tokens.push({ type: "close" });
    // Links are not nested.
    if (!opener.image) this.#inactive = this.#brackets.length;
    this.at = target.end;
  }

  #delimiter(mark) {
    const run = mark === "~" ? /~+/y : mark === "*" ? /\*+/y : /_+/y;
    run.lastIndex = this.at;
    const text = run.exec(this.text)[0];
    const end = this.at + text.length;
    if (mark === "~" && text.length !== 2) return this.#plain(text);
    const before = charBefore(this.text, this.at);
    const after = end < this.text.length ? String.fromCodePoint(this.text.codePointAt(end)) : " ";
    const left = flanks(after, before);
    const right = flanks(before, after);
    const inWord = mark === "_";
    this.tokens.push({
      type: "delimiter",
      mark,
      length: text.length,
      left: text.length,
      canOpen: left && (!inWord || !right || PUNCTUATION.test(before)),
      canClose: right && (!inWord || !left || PUNCTUATION.test(after)),
      last: end === this.text.length,
    });
    this.at = end;
  }
}

const PUNCTUATION = /[\p{P}\p{S}]/u;

/** Return whether a run of delimiters leans on one side, given the characters on both. */
function flanks(side, other) {
  if (/\s/.test(side)) return false;
  return !PUNCTUATION.test(side) || /\s/.test(other) || PUNCTUATION.test(other);
}

function charBefore(text, at) {
  if (at === 0) return " ";
  const low = text.charCodeAt(at - 1);
  const pair = low >= 0xdc00 && low < 0xe000 && at > 1;
  return String.fromCodePoint(text.codePointAt(pair ? at - 2 : at - 1));
}

/** Return an address's length without the sentence's marks and brackets that nothing in it opens. */
function addressEnd(address) {
  let end = address.length;
  let surplus = address.split(")").length - address.split("(").length;
  for (; end > 0; end--) {
    const char = address[end - 1];
    if (char === ")" && surplus > 0) surplus--;
    else if (!"?!.,:;*_~'[]".includes(char)) break;
  }
  return end;
}

/** Return where runs of backticks are, by their length. */
function ticksOf(text) {
  const found = new Map();
  for (const match of text.matchAll(/`+/g)) {
    const size = match[0].length;
    if (!found.has(size)) found.set(size, { places: [], next: 0 });
    found.get(size).places.push(match.index);
  }
  return found;
}

/**
 * Return the tokens of a paragraph's text.
 *
 * With `open`, the text is still being written: code and bold print that have no end yet end with it,
 * so that marks do not appear and vanish.
 */
export function parseInline(text, open = false) {
  return new Reader(text, open).read();
}
