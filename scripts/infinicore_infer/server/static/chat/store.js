// Conversations in the browser's database. Where it is forbidden, full or gone, they live in memory,
// and the page says so. Every message is a record of its own: an answer that grows costs its own
// size, and two tabs that write at once do not overwrite each other.

const NAME = "infinicore_infer.chat";
const OPENING_MS = 4000;

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    setTimeout(() => reject(new Error("it does not answer")), OPENING_MS);
  });
}

/** Return why something could not be kept, in words. */
function reasonOf(error) {
  if (error?.name === "QuotaExceededError") return "the browser's storage is full";
  return `the browser does not let this page store anything (${error?.message || error?.name || error})`;
}

export class Store extends EventTarget {
  #db = null;
  #memory = { conversations: new Map(), messages: new Map() };
  #channel = null;
  #opened = Promise.resolve();

  /** Why not everything is kept, or null. */
  problem = null;

  /** Open the database, for which everything else waits. */
  open() {
    this.#opened = this.#open();
    return this.#opened;
  }

  async #open() {
    try {
      this.#db = await openDatabase();
      this.#db.onversionchange = () => this.#db.close();
      this.#channel = new BroadcastChannel(NAME);
      this.#channel.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("elsewhere", { detail: data }));
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    this.problem = reasonOf(error);
    this.dispatchEvent(new Event("problem"));
  }

  async #write(names, work) {
    await this.#opened;
    if (!this.#db) return false;
    try {
      const transaction = this.#db.transaction(names, "readwrite");
      const done = new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
      work(transaction);
      await done;
      return true;
    } catch (error) {
      this.#fail(error);
      return false;
    }
  }

  async #read(name, query) {
    await this.#opened;
    if (!this.#db) return [];
    try {
      return await settled(query(this.#db.transaction(name).objectStore(name)));
    } catch (error) {
      this.#fail(error);
      return [];
    }
  }

  /** Return all conversations, the one changed last first; without their messages. */
  async conversations() {
    const kept = await this.#read("conversations", (table) => table.getAll());
    const all = new Map(kept.map((item) => [item.id, item]));
    for (const item of this.#memory.conversations.values()) all.set(item.id, item);
    return [...all.values()].sort((a, b) => b.changed - a.changed);
  }

  /** Return the messages of a conversation, in no order. */
  async messages(conversation) {
    const kept = await this.#read("messages", (table) => table.index("conversation").getAll(conversation));
    const all = new Map(kept.map((item) => [item.id, item]));
    for (const item of this.#memory.messages.values()) if (item.conversation === conversation) all.set(item.id, item);
    return [...all.values()];
  }

  /** Keep a conversation's record and some messages of it; all or none of them. */
  async put(record, messages = []) {
    const items = [...(record ? [["conversations", record]] : []), ...messages.map((item) => ["messages", item])];
    const kept = await this.#keep(items);
    for (const [table, item] of items)
      if (kept) this.#memory[table].delete(item.id);
      else this.#memory[table].set(item.id, structuredClone(item));
    if (kept && this.problem) await this.#catchUp();
    this.#tell(record?.id ?? messages[0]?.conversation, Boolean(record));
    return kept;
  }

  #keep(items) {
    return this.#write(["conversations", "messages"], (transaction) => {
      for (const [table, item] of items) transaction.objectStore(table).put(item);
    });
  }

  /** There is room again: keep what could not be kept before. */
  async #catchUp() {
    const tables = Object.entries(this.#memory);
    const items = tables.flatMap(([table, held]) => [...held.values()].map((item) => [table, item]));
    if (!(await this.#keep(items))) return;
    for (const [table, item] of items) this.#memory[table].delete(item.id);
    this.problem = null;
    this.dispatchEvent(new Event("problem"));
  }

  /** Remove a conversation. */
  async remove(id) {
    this.#memory.conversations.delete(id);
    for (const item of [...this.#memory.messages.values()])
      if (item.conversation === id) this.#memory.messages.delete(item.id);
    await this.#write(["conversations", "messages"], (transaction) => {
      transaction.objectStore("conversations").delete(id);
      const table = transaction.objectStore("messages");
      table.index("conversation").getAllKeys(id).onsuccess = ({ target }) => {
        for (const key of target.result) table.delete(key);
      };
    });
    this.#tell(id, true);
  }

  /** Tell other tabs, and with `listed` this one's list, that a conversation is not what it was. */
  #tell(id, listed) {
    this.#channel?.postMessage({ id });
    if (listed) this.dispatchEvent(new CustomEvent("changed", { detail: { id } }));
  }
}

/** Return how much the browser stores for this page, {usage, quota} in bytes, or null. */
export async function storageUse() {
  try {
    return await navigator.storage.estimate();
  } catch {
    return null;
  }
}
