// Knows the state of the server: connecting, ready, busy, loading, draining, gone, or key (it wants one).

const EVERY_MS = 5000;
const HIDDEN_MS = 30000;
const SLOWEST_MS = 8000;

export class Monitor extends EventTarget {
  #server;
  #timer = 0;
  #wait = 1000;
  #asking = false;

  state = "connecting";
  model = "";
  context = 0;
  running = 0;
  waiting = 0;

  constructor(server) {
    super();
    this.#server = server;
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
    addEventListener("online", () => this.check());
  }

  /** Ask now, and from now on again and again. */
  async check() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    try {
      await this.#ask();
    } catch (error) {
      this.#become(["loading", "draining", "key"].includes(error.kind) ? error.kind : "gone");
    } finally {
      this.#asking = false;
      this.#timer = setTimeout(() => this.check(), this.#pause());
    }
  }

  async #ask() {
    if (this.state === "ready" || this.state === "busy") await this.#server.json("health");
    else {
      // It may be another server by now.
      const card = (await this.#server.json("v1/models")).data?.[0] ?? {};
      this.model = String(card.id ?? "");
      this.context = Number(card.max_model_len) || 0;
    }
    Object.assign(this, await this.#server.load().catch(() => ({ running: 0, waiting: 0 })));
    this.#become(this.running + this.waiting > 0 ? "busy" : "ready");
  }

  #pause() {
    if (document.hidden) return HIDDEN_MS;
    const well = this.state === "ready" || this.state === "busy" || this.state === "key";
    this.#wait = well ? 500 : Math.min(2 * this.#wait, SLOWEST_MS);
    return well ? EVERY_MS : this.#wait;
  }

  #become(state) {
    const before = this.state;
    this.state = state;
    this.dispatchEvent(new CustomEvent("change", { detail: { before } }));
  }

  /** Take note that a request found the server in a state. */
  noticed(kind) {
    if (["gone", "broken", "loading", "draining", "key"].includes(kind)) {
      this.#become(kind === "broken" ? "gone" : kind);
      this.#wait = 500;
      this.check();
    }
  }
}
