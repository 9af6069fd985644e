// Pairs the runs of * _ and ~~ of a paragraph: the algorithm of CommonMark's appendix.

const TAGS = { "~": "del" };

/**
 * Turn the delimiters among tokens, from an index on, into open and close tokens and text.
 *
 * With `open`, bold print that has no end ends with the tokens.
 */
export function matchEmphasis(tokens, from, open) {
  const runs = [];
  for (let i = from; i < tokens.length; i++)
    if (tokens[i].type === "delimiter") runs.push({ token: tokens[i], opens: [], closes: [] });
  if (!runs.length) return;
  runs.forEach((run, i) => Object.assign(run, { before: i - 1, after: i + 1 }));
  const final = open ? hideLast(runs) : 0;
  pair(runs);
  const goesOn = ({ token }) => token.canOpen && (token.left === 2 || token.left === final);
  const unclosed = open ? runs.findLast((run) => run.token.mark === "*" && goesOn(run)) : undefined;
  if (unclosed) {
    unclosed.opens.push(unclosed.token.left === 2 ? "strong" : "em");
    unclosed.token.left = 0;
  }
  const result = [];
  let next = 0;
  for (let i = from; i < tokens.length; i++) {
    if (tokens[i].type !== "delimiter") {
      result.push(tokens[i]);
      continue;
    }
    const { token, opens, closes } = runs[next++];
    for (let k = 0; k < closes.length; k++) result.push({ type: "close" });
    if (token.left) result.push({ type: "text", text: token.mark.repeat(token.left) });
    for (const tag of opens.reverse()) result.push({ type: "open", tag });
  }
  if (unclosed) result.push({ type: "close" });
  tokens.length = from;
  for (const token of result) tokens.push(token);
}

/** Of a text that is being written, leave out the marks at its end: they may be half of what comes. */
function hideLast(runs) {
  const { token } = runs.at(-1);
  if (!token.last) return 0;
  const { left } = token;
  Object.assign(token, { canOpen: false, canClose: false, left: 0 });
  return left;
}

function pair(runs) {
  // Below which run no opener can be, for a kind of closer that has looked in vain.
  const bottoms = new Map();
  let at = 0;
  while (at < runs.length) {
    const { token } = runs[at];
    if (!token.canClose || !token.left) {
      at = runs[at].after;
      continue;
    }
    const kind = `${token.mark}${token.canOpen}${token.length % 3}`;
    const bottom = bottoms.get(kind) ?? -1;
    let opener = runs[at].before;
    while (opener > bottom && !fits(runs[opener].token, token)) opener = runs[opener].before;
    if (opener <= bottom) {
      bottoms.set(kind, runs[at].before);
      // What neither found an opener nor can be one is text.
      if (!token.canOpen) remove(runs, at);
      at = runs[at].after;
      continue;
    }
    const first = runs[opener].token;
    const size = token.mark === "~" || (first.left >= 2 && token.left >= 2) ? 2 : 1;
    const tag = TAGS[token.mark] ?? (size === 2 ? "strong" : "em");
    runs[opener].opens.push(tag);
    runs[at].closes.push(tag);
    first.left -= size;
    token.left -= size;
    // What is between them can no longer be paired.
    runs[opener].after = at;
    runs[at].before = opener;
    if (!first.left) remove(runs, opener);
    if (!token.left) {
      remove(runs, at);
      at = runs[at].after;
    }
  }
}

function fits(opener, closer) {
  if (opener.mark !== closer.mark || !opener.canOpen || !opener.left) return false;
  const mixed = opener.canClose || closer.canOpen;
  const multiple = opener.length % 3 === 0 && closer.length % 3 === 0;
  return !mixed || (opener.length + closer.length) % 3 !== 0 || multiple;
}

function remove(runs, at) {
  const { before, after } = runs[at];
  if (before >= 0) runs[before].after = after;
  if (after < runs.length) runs[after].before = before;
}
