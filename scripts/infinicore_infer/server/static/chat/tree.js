// A conversation as a tree: versions of a question or an answer have the same parent, so nothing is
// ever overwritten, whether it is asked again, edited, or written by two tabs at once.

let last = 0;

/** Return a new id; later ones sort behind earlier ones. */
export function newId() {
  last = Math.max(Date.now(), last + 1);
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${last.toString(36).padStart(9, "0")}-${random[0].toString(36)}${random[1].toString(36)}`;
}

export class Tree {
  #children = new Map();

  /** @param {Iterable<object>} messages with `id`, and `parent`, which is an id or null */
  constructor(messages = []) {
    this.messages = new Map();
    for (const message of [...messages].sort((a, b) => (a.id < b.id ? -1 : 1))) this.add(message);
  }

  /** Add a message, or put a newer state of one in its place. */
  add(message) {
    const known = this.messages.has(message.id);
    this.messages.set(message.id, message);
    if (known) return;
    const list = this.#children.get(message.parent) ?? [];
    list.push(message.id);
    this.#children.set(message.parent, list);
  }

  /** Return the ids of a message and its other versions, oldest first. */
  versions(id) {
    return this.#children.get(this.messages.get(id).parent) ?? [];
  }

  /** Return the messages from the first to one of them. A damaged tree ends where it is damaged. */
  path(leaf) {
    const found = [];
    const seen = new Set();
    for (let at = this.messages.get(leaf); at && !seen.has(at.id); at = this.messages.get(at.parent)) {
      seen.add(at.id);
      found.push(at);
    }
    return found.reverse();
  }

  /** Return the id of the newest message below one, or below all. */
  newest(id = null) {
    let at = id;
    const seen = new Set();
    for (;;) {
      const next = this.#children.get(at)?.at(-1);
      if (next === undefined || seen.has(next)) return at;
      seen.add(next);
      at = next;
    }
  }
}
