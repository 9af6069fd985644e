// Requests to the server. Paths are relative, so that a proxy may put the page anywhere.

import { ServerError, errorOf } from "./errors.js";

export class Server {
  /** @param {Settings} settings whose key is sent */
  constructor(settings) {
    this.settings = settings;
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.settings.key) headers.Authorization = `Bearer ${this.settings.key}`;
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      // A key with characters that no header can have is no network's fault.
      if (/header/i.test(error.message)) throw new ServerError("key", error.message);
      throw new ServerError("gone", "");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  /** Return what a path answers. */
  async json(path) {
    return (await this.#fetch(path, { signal: AbortSignal.timeout?.(10000) })).json();
  }

  /** Return {running, waiting}: answers in progress, and waiting besides. */
  async load() {
    const text = await (await this.#fetch("metrics", { signal: AbortSignal.timeout?.(10000) })).text();
    const read = (name) => Number(new RegExp(`^infinicore_infer_requests_${name} (\\S+)`, "m").exec(text)?.[1] ?? 0);
    return { running: read("running"), waiting: read("waiting") };
  }

  /** Yield the events of a streamed chat completion; throw if it breaks off. */
  async *chat(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    try {
      yield* this.#events(reader);
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  async *#events(reader) {
    let rest = "";
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        throw error.name === "AbortError" ? error : new ServerError("broken", "");
      }
      if (piece.done) throw new ServerError("broken", "");
      const lines = (rest + piece.value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = parsed(data);
        if (event.error) throw new ServerError(event.error.code === "timeout" ? "late" : "failed", event.error.message);
        yield event;
      }
    }
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("broken", "an event of the answer was unreadable");
  }
}
