// Finds words in titles and messages.

const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const AROUND = 40;

/** Return the part of a text around a word, or "". */
function excerpt(text, word) {
  const at = fold(text).indexOf(word);
  if (at < 0) return "";
  const begin = Math.max(0, at - AROUND);
  return `${begin ? "…" : ""}${text.slice(begin, at + word.length + 2 * AROUND).replace(/\s+/g, " ")}`;
}

/**
 * Yield {record, excerpt} of the conversations that have all words of a query.
 *
 * @param {function(): boolean} stopped whether nobody waits for more
 */
export async function* search(store, records, query, stopped) {
  const wanted = fold(query).split(/\s+/).filter(Boolean);
  for (const record of records) {
    const left = new Set(wanted.filter((word) => !fold(record.title).includes(word)));
    let found = "";
    if (left.size) {
      for (const { content } of await store.messages(record.id)) {
        const folded = fold(content);
        for (const word of left)
          if (folded.includes(word)) {
            found ||= excerpt(content, word);
            left.delete(word);
          }
      }
    }
    if (stopped()) return;
    if (!left.size) yield { record, excerpt: found };
  }
}
