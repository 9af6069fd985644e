// Lines of HTML and XML: tags, their attributes, comments and entities.

const COMMENT = "-->";
const TOKEN = /<!--|<\/?[A-Za-z][\w:.-]*|<[!?][A-Za-z]*|&#?\w{1,32};|[^<&]+|[<&]/y;
const IN_TAG = /\/?>|\?>|"[^"]*"?|'[^']*'?|[\w:.@-]+|\s+|[^\s\w]/y;

/** Return the pieces of a line and the state behind it: null, "tag" or "comment". */
export function markupLine(line, state) {
  const pieces = [];
  let at = 0;
  let open = state;
  while (at < line.length) {
    if (open === "comment") {
      const end = line.indexOf(COMMENT, at);
      const next = end < 0 ? line.length : end + COMMENT.length;
      pieces.push(["comment", line.slice(at, next)]);
      at = next;
      if (end >= 0) open = null;
      continue;
    }
    const pattern = open === "tag" ? IN_TAG : TOKEN;
    pattern.lastIndex = at;
    const text = pattern.exec(line)[0];
    if (text === "<!--") open = "comment";
    pieces.push([text === "<!--" ? "comment" : open === "tag" ? kindInTag(text) : kindOf(text), text]);
    if (open === "tag" && text.endsWith(">") && !/^["']/.test(text)) open = null;
    else if (open === null && text.length > 1 && text[0] === "<") open = "tag";
    at += text.length;
  }
  return { pieces, state: open };
}

const kindOf = (text) => (text[0] === "<" && text.length > 1 ? "keyword" : text[0] === "&" && text.length > 1 ? "number" : "");

function kindInTag(text) {
  if (/^["']/.test(text)) return "string";
  if (text.endsWith(">")) return "keyword";
  return /^[\w:.@-]/.test(text) ? "function" : "";
}
