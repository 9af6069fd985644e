// Addresses of links. Only what opens a page elsewhere or a mail is a link at all.

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MOST = 2000;

/** Return an address that may be linked to, or null. Relative ones would lead into this server. */
export function safeUrl(text) {
  // Browsers drop these inside a scheme: "java\nscript:".
  if (!/^[a-z][a-z0-9+.-]*:/i.test(text) || /[\u0000-\u0020\u007f]/.test(text)) return null;
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? text : null;
  } catch {
    return null;
  }
}

const unescape = (text) => text.replace(/\\([!-/:-@[-`{-~])/g, "$1").replaceAll("&amp;", "&");

/** Return {url, title, end} of what is in the brackets behind a link's text, or null. */
export function takeTarget(text, from) {
  let at = skipSpace(text, from);
  let url;
  if (text[at] === "<") {
    const match = sticky(/<([^<>\n]{0,2000})>/y, text, at);
    if (!match) return null;
    url = match[1].replaceAll(" ", "%20");
    at += match[0].length;
  } else {
    const end = bareEnd(text, at);
    url = text.slice(at, end);
    at = end;
  }
  let title = "";
  const behind = skipSpace(text, at);
  if (behind > at) {
    const match = sticky(/"((?:[^"\\]|\\.){0,1000})"|'((?:[^'\\]|\\.){0,1000})'|\(([^()\\]{0,1000})\)/y, text, behind);
    if (match) {
      title = match[1] ?? match[2] ?? match[3];
      at = behind + match[0].length;
    }
  }
  at = skipSpace(text, at);
  if (text[at] !== ")") return null;
  return { url: unescape(url), title: unescape(title), end: at + 1 };
}

function bareEnd(text, from) {
  let depth = 0;
  const most = Math.min(text.length, from + MOST);
  for (let at = from; at < most; at++) {
    const char = text[at];
    if (char === "\\") at++;
    else if (char === "(") depth++;
    else if (char <= " " || (char === ")" && depth-- === 0)) return at;
  }
  return most;
}

function skipSpace(text, at) {
  const most = at + 100;
  while (at < most && (text[at] === " " || text[at] === "\n")) at++;
  return at;
}

function sticky(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}
