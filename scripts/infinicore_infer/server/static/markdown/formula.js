// Formulas: TeX becomes MathML where all of it is understood, and else stays as it was written,
// which is better than half of it.

import { el } from "../dom.js";
import { ACCENTS, BOUNDED, FONTS, IGNORED, LARGE, NAMES, OPERATORS, SPACES, SYMBOLS, TABLES } from "./tex.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
// Longer or deeper ones stay as they are.
const LONGEST = 4000;
const DEEPEST = 40;
const TOKEN = /\\(?:operatorname\*|[A-Za-z]+|[^A-Za-z])|\d+(?:[.,]\d+)*|[A-Za-z]|\s+|./gsu;

function math(tag, props, ...children) {
  const made = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(props ?? {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

class NotUnderstood extends Error {}

class Reader {
  #at = 0;
  #depth = 0;

  constructor(source) {
    this.tokens = source.match(TOKEN) ?? [];
  }

  #peek() {
    return this.tokens[this.#at];
  }

  #skipSpace() {
    while (/^\s/.test(this.#peek() ?? "")) this.#at++;
  }

  /** Take the next token if it is this one. */
  #take(token) {
    this.#skipSpace();
    if (this.#peek() !== token) return false;
    this.#at++;
    return true;
  }

  #expect(token) {
    if (!this.#take(token)) throw new NotUnderstood(token);
  }

  all() {
    const row = this.#row([]);
    if (this.#peek() !== undefined) throw new NotUnderstood(this.#peek());
    return row;
  }

  /** Read up to one of these tokens, which is left. */
  #row(ends) {
    if (++this.#depth > DEEPEST) throw new NotUnderstood("depth");
    const row = math("mrow");
    for (this.#skipSpace(); ![undefined, ...ends].includes(this.#peek()); this.#skipSpace()) {
      const named = NAMES.has(this.#peek().slice(1));
      const made = this.#scripts();
      // Names of functions keep their distance, but not from a bracket behind them.
      if (named && row.firstChild) row.append(math("mspace", { width: SPACES[","] }));
      if (made) row.append(made);
      this.#skipSpace();
      if (named && !["(", "\\left", ...ends].includes(this.#peek())) row.append(math("mspace", { width: SPACES[","] }));
    }
    this.#depth--;
    return row;
  }

  /** Read an atom with what is above and below it. */
  #scripts() {
    const large = this.#isLarge();
    const base = this.#atom();
    let below = null;
    let above = null;
    for (;;) {
      if (!below && this.#take("_")) below = this.#argument();
      else if (!above && this.#take("^")) above = this.#argument();
      else if (!above && this.#take("'")) {
        let primes = "′";
        while (this.#take("'")) primes += "′";
        above = math("mo", null, primes);
      } else break;
    }
    if (!below && !above) return base;
    const inner = base ?? math("mrow");
    if (below && above) return math(large ? "munderover" : "msubsup", null, inner, below, above);
    return below ? math(large ? "munder" : "msub", null, inner, below) : math(large ? "mover" : "msup", null, inner, above);
  }

  #isLarge() {
    const name = this.#peek().slice(1);
    return this.#peek()[0] === "\\" && ((LARGE[name] && !name.includes("int")) || BOUNDED.has(name));
  }

  /** Read what a command, _ or ^ is followed by: a group, or one atom. */
  #argument() {
    this.#skipSpace();
    if (this.#peek() === undefined || "}&^_".includes(this.#peek())) throw new NotUnderstood("argument");
    const token = this.#peek();
    if (/^\d./.test(token)) {
      // Without braces, the first digit alone.
      this.tokens[this.#at] = token.slice(1);
      return math("mn", null, token[0]);
    }
    return this.#atom() ?? math("mrow");
  }

  #atom() {
    const token = this.tokens[this.#at++];
    if (token === "{") {
      const row = this.#row(["}"]);
      this.#expect("}");
      return row;
    }
    if (token[0] === "\\") return this.#command(token.slice(1));
    if (/^\d/.test(token)) return math("mn", null, token);
    if (/^[\p{L}]$/u.test(token)) return math("mi", null, token);
    if ("}&^_#%$".includes(token)) throw new NotUnderstood(token);
    if (token === "~") return math("mspace", { width: "0.25em" });
    if (token === "|") return math("mo", { stretchy: "false", lspace: "0", rspace: "0" }, token);
    return math("mo", "()[]/".includes(token) ? { stretchy: "false" } : null, token === "-" ? "−" : token);
  }

  #command(name) {
    if (SYMBOLS[name]) return math("mi", null, SYMBOLS[name]);
    if (OPERATORS[name]) return math("mo", { stretchy: "false" }, OPERATORS[name]);
    if (LARGE[name]) return math("mo", { movablelimits: "true", largeop: "true" }, LARGE[name]);
    if (NAMES.has(name)) return math("mi", null, name);
    if (SPACES[name]) return math("mspace", { width: SPACES[name] });
    if (IGNORED.has(name)) return null;
    if (["frac", "dfrac", "tfrac"].includes(name)) return math("mfrac", null, this.#argument(), this.#argument());
    if (name === "binom") return this.#fenced("(", math("mfrac", { linethickness: "0" }, this.#argument(), this.#argument()), ")");
    if (name === "sqrt") return this.#root();
    if (name in FONTS) return this.#letters(FONTS[name]);
    if (ACCENTS[name]) return math("mover", { accent: "true" }, this.#argument(), math("mo", null, ACCENTS[name]));
    if (name === "underline") return math("munder", null, this.#argument(), math("mo", null, "_"));
    if (name === "boxed") return math("mrow", { class: "boxed" }, this.#argument());
    if (name === "left") return this.#leftRight();
    if (name === "begin") return this.#table();
    throw new NotUnderstood(name);
  }

  #root() {
    if (!this.#take("[")) return math("msqrt", null, this.#argument());
    const index = this.#row(["]"]);
    this.#expect("]");
    return math("mroot", null, this.#argument(), index);
  }

  /** Read the raw text of a group. */
  #raw() {
    this.#expect("{");
    let text = "";
    for (; this.#peek() !== "}"; this.#at++) {
      if (this.#peek() === undefined || this.#peek() === "{") throw new NotUnderstood("text");
      text += this.#peek();
    }
    this.#at++;
    return text;
  }

  #letters(font) {
    this.#skipSpace();
    const text = this.#peek() === "{" ? this.#raw() : this.tokens[this.#at++];
    if (text === undefined || /[\\$^_]/.test(text)) throw new NotUnderstood("letters");
    const shown = font ? Array.from(text, (char) => styled(char, font)).join("") : text;
    return math(/^\p{L}+$/u.test(text) ? "mi" : "mtext", { mathvariant: "normal" }, shown.replace(/ /g, "\u00a0"));
  }

  #delimiter() {
    this.#skipSpace();
    const token = this.tokens[this.#at++] ?? "";
    const text = token[0] === "\\" ? OPERATORS[token.slice(1)] : token === "." ? "" : token;
    if (text === undefined || !/^[()[\]{}|/⟨⟩⌊⌋⌈⌉‖<>]?$/.test(text)) throw new NotUnderstood(token);
    return text;
  }

  #leftRight() {
    const left = this.#delimiter();
    const inside = this.#row(["\\right"]);
    this.#expect("\\right");
    return this.#fenced(left, inside, this.#delimiter());
  }

  #fenced(left, inside, right) {
    const fence = (text) => (text ? [math("mo", { fence: "true", stretchy: "true" }, text)] : []);
    return math("mrow", null, ...fence(left), inside, ...fence(right));
  }

  #table() {
    const name = this.#raw();
    if (!TABLES[name]) throw new NotUnderstood(name);
    if (name === "array") this.#raw();
    const table = math("mtable", name === "cases" || /align|split/.test(name) ? { class: "left" } : null);
    let row = math("mtr");
    for (;;) {
      row.append(math("mtd", null, this.#row(["&", "\\\\", "\\end"])));
      if (this.#take("&")) continue;
      table.append(row);
      row = math("mtr");
      if (this.#take("\\\\")) continue;
      this.#expect("\\end");
      if (this.#raw() !== name) throw new NotUnderstood("end");
      return this.#fenced(TABLES[name][0], table, TABLES[name][1]);
    }
  }
}

const STARTS = { bold: [0x1d400, 0x1d41a], double: [0x1d538, 0x1d552], script: [0x1d49c, 0x1d4b6] };
const HOLES = { "double C": "ℂ", "double H": "ℍ", "double N": "ℕ", "double P": "ℙ", "double Q": "ℚ", "double R": "ℝ", "double Z": "ℤ",
  "script B": "ℬ", "script E": "ℰ", "script F": "ℱ", "script H": "ℋ", "script I": "ℐ", "script L": "ℒ", "script M": "ℳ", "script R": "ℛ" };

/** Return a letter in a style that Unicode has. */
function styled(char, font) {
  if (HOLES[`${font} ${char}`]) return HOLES[`${font} ${char}`];
  const [upper, lower] = STARTS[font];
  if (/[A-Z]/.test(char)) return String.fromCodePoint(upper + char.charCodeAt(0) - 65);
  return /[a-z]/.test(char) && font !== "script" ? String.fromCodePoint(lower + char.charCodeAt(0) - 97) : char;
}

/** Return the element of a formula. Its source is its tooltip. */
export function formula(source, display) {
  const shown = el(display ? "div" : "span", { class: "math", dir: "ltr", title: source });
  try {
    if (source.length > LONGEST) throw new NotUnderstood("length");
    shown.append(math("math", { display: display ? "block" : "inline" }, new Reader(source).all()));
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    shown.append(source);
  }
  return shown;
}
