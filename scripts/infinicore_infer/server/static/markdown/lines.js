// What a single line of markdown begins, as in CommonMark with GitHub's tables.
// Patterns have no nested repetition, so that no line takes quadratic time.

/** Blocks inside blocks, beyond which everything is a paragraph. */
export const MAX_DEPTH = 12;

export const isBlank = (line) => line === undefined || !/\S/.test(line);

/** Return a line whose leading tabs are spaces up to the next multiple of four columns. */
export function untab(line, column = 0) {
  if (!/^ *\t/.test(line)) return line;
  let width = column;
  let at = 0;
  for (; line[at] === " " || line[at] === "\t"; at++) width += line[at] === " " ? 1 : 4 - (width % 4);
  return " ".repeat(width - column) + line.slice(at);
}

export const indentOf = (line) => line.length - line.trimStart().length;

/** Return {indent, mark, info} of a line that opens a fence, or null. */
export function fenceOf(line) {
  const match = /^( {0,3})(`{3,}|~{3,})(.*)$/.exec(line);
  if (!match || (match[2][0] === "`" && match[3].includes("`"))) return null;
  return { indent: match[1].length, mark: match[2], info: match[3].trim() };
}

/** Return whether a line closes a fence. */
export function closesFence(line, fence) {
  const match = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(line);
  return match !== null && match[1][0] === fence.mark[0] && match[1].length >= fence.mark.length;
}

/** Return {level, text} of a heading that begins with #, or null. */
export function headingOf(line) {
  const match = /^ {0,3}(#{1,6})(?=[ \t]|$)/.exec(line);
  if (!match) return null;
  let text = line.slice(match[0].length).trim();
  const bare = text.replace(/#+$/, "");
  if (bare === "" || /[ \t]$/.test(bare)) text = bare.trimEnd();
  return { level: match[1].length, text };
}

export const isRule = (line) => {
  const bare = line.trim();
  if (indentOf(line) > 3 || !/^[-*_]/.test(bare)) return false;
  const marks = bare.replace(/[ \t]/g, "");
  return marks.length >= 3 && marks === marks[0].repeat(marks.length);
};

/** Return the level of the heading that a line makes of the paragraph above it, or 0. */
export function underlineOf(line) {
  const match = /^ {0,3}(=+|-+)[ \t]*$/.exec(line ?? "");
  return match ? (match[1][0] === "=" ? 1 : 2) : 0;
}

export const isQuote = (line) => /^ {0,3}>/.test(line);

/**
 * Return {kind, start, width, empty, text} of a line that begins an item of a list, or null.
 * Its text begins behind the mark and `width` columns.
 */
export function itemOf(line) {
  const match = /^( {0,3})([-+*]|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(line);
  if (!match || isRule(line)) return null;
  const rest = untab(line.slice(match[0].length), match[0].length);
  const empty = isBlank(rest);
  const spaces = indentOf(rest);
  const gap = empty || spaces > 4 ? 1 : spaces;
  return {
    kind: match[4] ?? match[2],
    start: match[3] === undefined ? null : Number(match[3]),
    width: match[0].length + gap,
    empty,
    text: rest.slice(gap),
  };
}

/** Return what closes a formula that a line opens, or null. */
export function mathOf(line) {
  const bare = line.trim();
  if (indentOf(line) > 3) return null;
  if (bare.startsWith("\\[")) return "\\]";
  // Text may well begin with two dollars: a formula has a line to itself, or ends as it begins.
  if (bare === "$$" || (bare.length > 4 && bare.startsWith("$$") && bare.endsWith("$$"))) return "$$";
  return null;
}

/** Return the cells of a row of a table; a backslash keeps a bar in its cell. */
export function cellsOf(line) {
  let bare = line.trim();
  if (bare.startsWith("|")) bare = bare.slice(1);
  const cells = [""];
  for (const piece of bare.split(/(\\\||\|)/)) {
    if (piece === "|") cells.push("");
    else cells[cells.length - 1] += piece === "\\|" ? "|" : piece;
  }
  if (cells.length > 1 && cells.at(-1).trim() === "") cells.pop();
  return cells.map((cell) => cell.trim());
}

/** Return the alignments of the columns, where two lines are the head of a table; else null. */
export function tableOf(line, next) {
  if (next === undefined || !line.includes("|") || indentOf(line) > 3 || indentOf(next) > 3) return null;
  if (!/^[ \t]*[|:-][-|: \t]*$/.test(next) || !next.includes("-")) return null;
  const marks = cellsOf(next);
  if (!marks.every((mark) => /^:?-+:?$/.test(mark)) || marks.length !== cellsOf(line).length) return null;
  return marks.map((mark) => {
    const left = mark.startsWith(":");
    const right = mark.endsWith(":");
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
}

/** Return whether a line ends the paragraph before it. */
export function interrupts(line, next) {
  if (isBlank(line) || fenceOf(line) || headingOf(line) || isRule(line) || isQuote(line)) return true;
  if (mathOf(line) || tableOf(line, next)) return true;
  const item = itemOf(line);
  return item !== null && !item.empty && (item.start === null || item.start === 1);
}
